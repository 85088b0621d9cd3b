from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.layers.set_reduction_factor import conditional_blocks
from keras_coda.training.inputs import preprocess


class Routing(NamedTuple):
    """Which tokens each block of a model computed, and with what weight.

    Attributes:
        names: list of the names of the conditional blocks, in order, as in
            `CodaBackbone.named_blocks`.
        weights: list with a float32 array of shape `(batch_size, k)` for each
            block. Routed padding has weight 0.
        indices: list with an int32 array of shape `(batch_size, k)` for each
            block, the positions of the routed tokens.
        length: int. The sequence length n, the longest if the blocks of a
            model with two towers have different ones.
        is_real: bool array of shape `(batch_size, n)`, false at padding, of
            the first block.
    """

    names: list
    weights: list
    indices: list
    length: int
    is_real: np.ndarray = None

    def weights_by_position(self):
        """The weight of every token in every block, 0 where not routed.

        Returns:
            float32 array of shape `(batch_size, num_blocks, n)`.
        """
        batch_size = len(self.weights[0])
        full = np.zeros((batch_size, len(self.names), self.length), "float32")
        for block, (weights, indices) in enumerate(
            zip(self.weights, self.indices)
        ):
            np.put_along_axis(full[:, block], indices, weights, axis=1)
        return full

    def num_blocks_routed(self):
        """How many of the blocks routed each token.

        Returns:
            int array of shape `(batch_size, n)`, 0 at padding.
        """
        return np.sum(self.weights_by_position() > 0, axis=1)


def routing(model, inputs):
    """Shows which tokens each block of a model routes.

    Args:
        model: a model with `keras_coda.layers.ConditionalTransformerBlock`
            layers: what `keras_coda.coda_wrap` made, or one of your own.
        inputs: one batch of what `predict` takes: of a task with a
            preprocessor texts or images, or a dict of arrays that it has
            preprocessed; else arrays of the model's inputs.

    Returns:
        A `Routing`.

    Raises:
        ValueError: if the model has no conditional block.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    >>> routing = keras_coda.analysis.routing(coda, np.ones((3, 8, 8, 3)))
    >>> print(routing.length, [k.shape for k in routing.indices])
    5 [(3, 3), (3, 3)]
    """
    return routing_of_tensors(model, preprocess(model, inputs))


def routing_of_tensors(model, inputs):
    """The `Routing` of inputs that need no preprocessing."""
    blocks = conditional_blocks(model)
    with RoutingScope() as scope:
        # Called and not `predict`, which would be compiled.
        tensors = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        model(tensors, training=False)
    records = [scope.record(block) for block in blocks]
    weights, indices = zip(*map(_to_arrays, records))
    return Routing(
        names=_names(model, blocks),
        weights=list(weights),
        indices=list(indices),
        length=max(int(record.inputs.shape[1]) for record in records),
        is_real=_is_real(records[0]),
    )


def _names(model, blocks):
    """The names of blocks, in a converted backbone as that names them."""
    names = {}
    for layer in [model, *sublayers(model, recursive=True)]:
        if isinstance(layer, CodaBackbone):
            # The outermost comes first: its names say which tower it is.
            for name, block in layer.named_blocks.items():
                names.setdefault(id(block), name)
    return [names.get(id(block), block.name) for block in blocks]


def _to_arrays(record):
    """The weights and positions that a `BlockRecord` routed."""
    weights, rows = record.routing
    weights = _to_array(weights)
    if not rows.are_all:
        return weights, _to_array(rows.indices)
    batch_size, length = weights.shape
    positions = np.arange(length, dtype="int32")
    # A model in which all are routed weighs padding as it does real tokens.
    return weights * _is_real(record), np.tile(positions, (batch_size, 1))


def _is_real(record):
    if record.padding_mask is None:
        return np.ones(record.inputs.shape[:2], bool)
    return _to_array(record.padding_mask).astype(bool)


def _to_array(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))
