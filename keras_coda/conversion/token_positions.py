import math

import keras_hub
from keras import ops

from keras_coda._keras_internals import sublayers


def token_positions(token_ids):
    """int32 positions, of the shape of `token_ids`.

    Unlike `ops.arange` it takes a symbolic input of unknown length, as
    `Family.pinned` gets it.
    """
    ones = ops.ones_like(token_ids, dtype="int32")
    return ops.cumsum(ones, axis=-1) - 1


def max_positions(model):
    """The most tokens for which a model has position embeddings.

    Infinity if it has none.
    """
    lengths = [
        layer.sequence_length
        for layer in sublayers(model, recursive=True)
        if isinstance(layer, keras_hub.layers.PositionEmbedding)
    ]
    return max(lengths, default=math.inf)


def validate_sequence_length(model, sequence_length):
    """Raises a `ValueError` where there are more tokens than positions."""
    limit = max_positions(model)
    if sequence_length > limit:
        raise ValueError(
            f"`sequence_length` must be at most {limit}, for which the model "
            f"has position embeddings. Received: {sequence_length=}"
        )
