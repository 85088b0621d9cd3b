"""Pure functions on `keras.ops`: soft top-k and the routing of token rows."""

from keras_coda.ops.routing import add_rows
from keras_coda.ops.routing import gather_pairs
from keras_coda.ops.routing import gather_rows
from keras_coda.ops.routing import routed_length
from keras_coda.ops.soft_top_k import soft_top_k

__all__ = [
    "add_rows",
    "gather_pairs",
    "gather_rows",
    "routed_length",
    "soft_top_k",
]
