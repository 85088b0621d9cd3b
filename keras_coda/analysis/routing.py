import contextlib
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_coda.layers.set_reduction_factor import conditional_blocks


class Routing(NamedTuple):
    """Which tokens each block of a model computed, and with what weight.

    Attributes:
        names: list of the names of the conditional blocks, in order.
        weights: list with a float32 array of shape `(batch_size, k)` for each
            block. Routed padding has weight 0.
        indices: list with an int32 array of shape `(batch_size, k)` for each
            block, the positions of the routed tokens.
        length: int. The sequence length n.
    """

    names: list
    weights: list
    indices: list
    length: int

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
        inputs: one batch of the model's inputs, preprocessed.

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
    blocks = conditional_blocks(model)
    with contextlib.ExitStack() as stack:
        records = [
            stack.enter_context(_recorded(block.router)) for block in blocks
        ]
        # Called and not `predict`, which would be compiled.
        tensors = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        model(tensors, training=False)
    return Routing(
        names=[block.name for block in blocks],
        weights=[record["weights"] for record in records],
        indices=[record["indices"] for record in records],
        length=records[0]["length"],
    )


@contextlib.contextmanager
def _recorded(router):
    """Keeps what a router returns while the context is entered."""
    record = {}
    call = router.call

    def recording_call(inputs, mask=None):
        weights, indices = call(inputs, mask=mask)
        record["length"] = int(inputs.shape[1])
        record["weights"] = ops.convert_to_numpy(ops.stop_gradient(weights))
        if indices is None:
            batch_size, length = record["weights"].shape
            positions = np.arange(length, dtype="int32")
            record["indices"] = np.tile(positions, (batch_size, 1))
            if mask is not None:
                # A model in which all are routed weighs padding as it does.
                record["weights"] = record["weights"] * ops.convert_to_numpy(
                    ops.cast(mask, "float32")
                )
        else:
            record["indices"] = ops.convert_to_numpy(indices)
        return weights, indices

    router.call = recording_call
    try:
        yield record
    finally:
        del router.call
