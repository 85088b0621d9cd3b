"""Layers of conditional computation, usable with or without KerasHub."""

from keras_coda.layers.conditional_transformer_block import (
    ConditionalTransformerBlock,
)
from keras_coda.layers.dense_block import BlockKernels
from keras_coda.layers.dense_block import DenseBlock
from keras_coda.layers.parallel_adapter import ParallelAdapter
from keras_coda.layers.prefix import Prefix
from keras_coda.layers.routed import Routed
from keras_coda.layers.sequential_adapter import SequentialAdapter
from keras_coda.layers.soft_top_k import SoftTopK
from keras_coda.layers.token_router import TokenRouter
from keras_coda.layers.transformer_block import TransformerBlock

__all__ = [
    "BlockKernels",
    "ConditionalTransformerBlock",
    "DenseBlock",
    "ParallelAdapter",
    "Prefix",
    "Routed",
    "SequentialAdapter",
    "SoftTopK",
    "TokenRouter",
    "TransformerBlock",
]
