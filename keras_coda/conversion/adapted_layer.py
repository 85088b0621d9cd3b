import inspect

import keras

from keras_coda.layers import ParallelAdapter
from keras_coda.layers.partly_frozen import PartlyFrozen


class AdaptedLayer(PartlyFrozen, keras.layers.Layer):
    """A layer with a dense parallel adapter: `layer(inputs) + adapter(inputs)`.

    What replaces a decoder layer. It takes the arguments of the layer and
    returns what the layer returns, of which the first tensor is adapted. Its
    weights are shared with the layer and frozen, layer normalisations too.

    Args:
        layer: a built layer whose first argument is, or begins with, the
            tensor to adapt, of shape `(batch_size, n, hidden_dim)`.
        hidden_dim: int.
        adapter_settings: dict of the arguments of `ParallelAdapter`.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, layer, hidden_dim, adapter_settings, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer
        self.layer_signature = inspect.signature(layer.call)
        self.adapter = ParallelAdapter(
            dtype=self.dtype_policy, name="adapter", **adapter_settings
        )
        self.adapter.build((None, None, hidden_dim))
        self.built = True
        self.freeze()

    def trained_layers(self):
        return [self.adapter]

    def call(self, *args, **kwargs):
        outputs = self.layer(*args, **kwargs)
        arguments = self.layer_signature.bind(*args, **kwargs).arguments
        first = next(iter(arguments.values()))
        update = self.adapter(keras.tree.flatten(first)[0])
        if isinstance(outputs, (list, tuple)):
            return (outputs[0] + update, *outputs[1:])
        return outputs + update
