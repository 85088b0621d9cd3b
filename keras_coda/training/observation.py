"""What calibration and alignment observe: the blocks of the encoder."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_coda._keras_internals import calls_of
from keras_coda.conversion.around import as_functional
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.routing_scope import RoutingScope

# A reduction factor that leaves out all tokens but one, or the pinned ones.
LEFT_OUT = 10_000


def as_observable(name, model):
    """A model as a graph of layers that calls one backbone once.

    Raises:
        TypeError: if it does not.
    """
    graph = as_functional(
        name, model, "Pass its backbone, and inputs of the backbone. "
    )
    num_calls = len(calls_of(graph, backbone_of(graph)))
    if num_calls > 1:
        raise TypeError(
            f"`{name}` must call its backbone once. Pass the part that makes "
            "the outputs of one call, a functional model or the backbone, and "
            "inputs of it: the calls share what is fitted. Received: "
            f"{name}={model!r}, which calls its backbone {num_calls} times"
        )
    return graph


def front_of(model):
    """What a model around a backbone makes of its inputs for the backbone.

    Such as a `Rescaling`, or other names.

    Returns:
        A functional model, or `None` where the backbone gets the inputs.
    """
    for inputs in calls_of(model, backbone_of(model)):
        if _ids(inputs) != _ids(model.input):
            return keras.Model(model.input, inputs)
    return None


def _ids(tensors):
    """Those of tensors, where they are in the structure."""
    return keras.tree.map_structure(id, tensors)


def behind_front(model, part):
    """A model of what a backbone gets, as one of what is given around it.

    Args:
        model: a converted model.
        part: a model that takes what the backbone of `model` takes.
    """
    front = front_of(model)
    if front is None:
        return part
    return keras.Model(model.input, part(front.output))


def encoder_of(model):
    """The part of a converted model that runs all its blocks."""
    backbone = backbone_of(model)
    if model is not backbone:
        return behind_front(model, encoder_of(backbone))
    blocks, towers = _own_blocks(model), _nested_backbones(model)
    if blocks and towers:
        return model
    if blocks:
        # T5's blocks also return the position bias.
        outputs = [
            keras.tree.flatten(stack[-1].output)[0] for stack in stacks(model)
        ]
    else:
        outputs = [
            encoder_of(tower)(inputs)
            for tower in towers
            for inputs in calls_of(model, tower)
        ]
    return keras.Model(model.input, outputs)


def stacks(backbone):
    """The blocks of a converted backbone, a list for each tower or stack."""
    own = {}
    for block in _own_blocks(backbone):
        own.setdefault(block.stack_name, []).append(block)
    nested = [
        stack
        for tower in _nested_backbones(backbone)
        for stack in stacks(tower)
    ]
    return [*own.values(), *nested]


def _nested_backbones(model):
    return [x for x in model.layers if isinstance(x, CodaBackbone)]


def _own_blocks(backbone):
    return [
        layer
        for layer in backbone.layers
        if isinstance(layer, ConditionalTransformerBlock)
    ]


@contextlib.contextmanager
def at_factors(factors, blocks):
    """Gives blocks other reduction factors while the context is entered."""
    before = [block.reduction_factor for block in blocks]
    try:
        # Not by way of the model's property: what is compiled stays valid.
        for block, factor in zip(blocks, factors):
            block.reduction_factor = factor
        yield
    finally:
        for block, factor in zip(blocks, before):
            block.reduction_factor = factor


def dense(blocks):
    """Computes everything while the context is entered."""
    return at_factors([1] * len(blocks), blocks)


@contextlib.contextmanager
def without_gradients(*models):
    """Has nothing recorded for gradients, which PyTorch keeps in memory."""
    weights = [w for model in models for w in model.trainable_weights]
    try:
        for weight in weights:
            weight.trainable = False
        yield
    finally:
        for weight in weights:
            weight.trainable = True


def block_lengths(model, batch):
    """How many tokens of a batch each block gets, a list."""
    blocks = backbone_of(model).conditional_blocks
    with dense(blocks), RoutingScope() as scope:
        encoder_of(model)(batch, training=False)
    return [scope.record(block).inputs.shape[1] for block in blocks]


def pinned_tokens(block, record):
    """Which tokens of a `BlockRecord` are always routed, as an array."""
    return to_numpy(
        block.pinned_tokens(record.inputs, record.padding_mask, record.pinned)
    )


def choosable(block, record):
    """Which tokens a router may choose: real ones that are not pinned."""
    chosen = ~pinned_tokens(block, record)
    if record.padding_mask is not None:
        chosen &= to_numpy(record.padding_mask).astype(bool)
    return chosen


def routed_tokens(record, routing=None):
    """Which tokens of a `BlockRecord` are routed, as an array.

    By its own `BlockRouting` or another.
    """
    rows = (routing or record.routing).rows
    routed = np.full(tuple(record.inputs.shape[:2]), rows.are_all)
    if not rows.are_all:
        np.put_along_axis(routed, to_numpy(rows.indices), True, axis=1)
    return routed


def to_numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def to_float32(tensor):
    return np.asarray(to_numpy(tensor), "float32")


def apply(function, array):
    return to_numpy(function(ops.convert_to_tensor(array)))
