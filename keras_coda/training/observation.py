"""What calibration and alignment observe: the blocks of the encoder."""

import contextlib

import keras
from keras import ops

from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.layers import ConditionalTransformerBlock


def encoder_of(backbone):
    """The part of a converted backbone that runs all its blocks."""
    blocks = _own_blocks(backbone)
    towers = list(backbone.nested_backbones.values())
    if blocks and not towers:
        # T5's blocks also return the position bias.
        outputs = [
            keras.tree.flatten(stack[-1].output)[0]
            for stack in stacks(backbone)
        ]
        return keras.Model(backbone.input, outputs)
    inputs = {x.name: x for x in keras.tree.flatten(backbone.input)}
    if blocks or not all(_reads_only(tower, inputs) for tower in towers):
        return backbone
    outputs = [
        encoder_of(tower)(
            keras.tree.map_structure(lambda x: inputs[x.name], tower.input)
        )
        for tower in towers
    ]
    return keras.Model(backbone.input, outputs)


def _reads_only(tower, inputs):
    """Whether a nested backbone reads none but inputs, a dict by name."""
    return all(x.name in inputs for x in keras.tree.flatten(tower.input))


def stacks(backbone):
    """The blocks of a converted backbone, a list for each tower or stack."""
    own = {}
    for block in _own_blocks(backbone):
        own.setdefault(block.stack_name, []).append(block)
    nested = [
        stack
        for layer in backbone.layers
        if isinstance(layer, CodaBackbone)
        for stack in stacks(layer)
    ]
    return [*own.values(), *nested]


def _own_blocks(backbone):
    return [
        layer
        for layer in backbone.layers
        if isinstance(layer, ConditionalTransformerBlock)
    ]


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


def pinned_tokens(block, record):
    """Which tokens of a `BlockRecord` are always routed, as an array."""
    return to_numpy(
        block.router.pinned_tokens(
            record.inputs, record.padding_mask, record.pinned
        )
    )


def choosable(block, record):
    """Which tokens a router may choose: real ones that are not pinned."""
    chosen = ~pinned_tokens(block, record)
    if record.padding_mask is not None:
        chosen &= to_numpy(record.padding_mask).astype(bool)
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
