"""What calibration and alignment observe: the blocks' inputs and outputs."""

import contextlib

import keras
import numpy as np
from keras import ops


def block_states(backbone):
    """A model of the inputs and outputs of the blocks, by name."""
    states = {}
    for block in backbone.conditional_blocks:
        # T5's blocks also return the position bias.
        states[block.name] = (
            keras.tree.flatten(block.input)[0],
            keras.tree.flatten(block.output)[0],
        )
    return keras.Model(backbone.input, states)


@contextlib.contextmanager
def dense(blocks):
    """Computes everything while the context is entered."""
    reduction_factors = [block.reduction_factor for block in blocks]
    try:
        # Not by way of the property: what is compiled stays valid.
        for block in blocks:
            block.reduction_factor = 1
        yield
    finally:
        for block, value in zip(blocks, reduction_factors):
            block.reduction_factor = value


def choosable(backbone, block, batch, hidden):
    """Which tokens a router may choose: real ones after the prefix."""
    mask = backbone.family.padding_mask(batch)
    chosen = np.ones(hidden.shape[:2], bool)
    if mask is not None:
        chosen = ops.convert_to_numpy(mask).astype(bool)
    chosen[:, : block.router.num_prefix_tokens] = False
    return chosen


def to_tensors(inputs):
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def apply(function, array):
    return to_numpy(function(ops.convert_to_tensor(array)))


def batches(x, batch_size):
    if not isinstance(x, dict) and not hasattr(x, "shape"):
        if iter(x) is x:
            raise TypeError(
                "`x` is passed over more than once, which an iterator does not "
                "allow. Pass arrays, a list of batches or a dataset. "
                f"Received: x={x!r}"
            )
        yield from x
        return
    first = keras.tree.flatten(x)[0]
    for start in range(0, len(first), batch_size):
        yield keras.tree.map_structure(
            lambda value: value[start : start + batch_size], x
        )
