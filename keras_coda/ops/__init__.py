"""Pure functions on `keras.ops`: soft top-k and the routing of token rows."""

from keras_coda.ops.routing import gather_pairs
from keras_coda.ops.routing import gather_rows
from keras_coda.ops.routing import routed_length
from keras_coda.ops.routing import scatter_rows
from keras_coda.ops.soft_top_k import soft_top_k

__all__ = [
    "gather_pairs",
    "gather_rows",
    "routed_length",
    "scatter_rows",
    "soft_top_k",
]
