"""Changing the reduction factor of a model that exists already."""

import keras

from keras_coda._keras_internals import forget_compiled_functions
from keras_coda._keras_internals import sublayers
from keras_coda.layers.conditional_transformer_block import (
    ConditionalTransformerBlock,
)
from keras_coda.validation import validate_reduction_factor


def set_reduction_factor(model, reduction_factor):
    """Sets the reduction factor of all conditional blocks in a model.

    What the model compiled for the old value is dropped, so that the next step
    of `fit`, `evaluate` or `predict` uses the new one. Converted backbones and
    tasks have a property `reduction_factor` that does the same; this function
    is for models that are built around them, or around
    `ConditionalTransformerBlock` layers.

    Args:
        model: a `keras.Model`.
        reduction_factor: a number >= 1, or a list with one number per
            conditional block, in the order of the blocks.

    Raises:
        ValueError: if the model has no conditional block, or if
            `reduction_factor` is below 1 or a list of another length; nothing
            is changed then.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 16)),
    ...     keras_coda.layers.ConditionalTransformerBlock(
    ...         keras_coda.layers.TransformerBlock(2, intermediate_dim=32)
    ...     ),
    ... ])
    >>> keras_coda.set_reduction_factor(model, 2)
    >>> model.layers[0].reduction_factor
    2
    """
    blocks = conditional_blocks(model)
    values = per_block_reduction_factors(reduction_factor, len(blocks))
    for block, value in zip(blocks, values):
        block.reduction_factor = value
    forget_compiled(model)


def forget_compiled(model):
    """Makes a model, and models inside it, trace their functions anew."""
    for layer in [model, *sublayers(model, recursive=True)]:
        if isinstance(layer, keras.Model):
            forget_compiled_functions(layer)


def conditional_blocks(model):
    """The conditional blocks in a model, in order; it must have some."""
    blocks = [
        layer
        for layer in sublayers(model, recursive=True)
        if isinstance(layer, ConditionalTransformerBlock)
    ]
    if not blocks:
        raise ValueError(
            "The model has no `ConditionalTransformerBlock`; convert it with "
            f"`keras_coda.coda_wrap` first. Received: model={model!r}"
        )
    return blocks


def per_block_reduction_factors(reduction_factor, num_blocks):
    """One validated reduction factor per block, from a number or a list."""
    if isinstance(reduction_factor, (list, tuple)):
        if len(reduction_factor) != num_blocks:
            raise ValueError(
                "A list `reduction_factor` must have one number for each of "
                f"the {num_blocks} conditional blocks. Received a list of "
                f"{len(reduction_factor)}: reduction_factor={reduction_factor}"
            )
        values = list(reduction_factor)
    else:
        values = [reduction_factor] * num_blocks
    return [validate_reduction_factor(value) for value in values]
