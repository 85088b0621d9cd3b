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
        # Keras asks `call` for it.
        self.signature = inspect.signature(layer.call)
        super().__init__(**kwargs)
        self.layer = layer
        self.adapter = ParallelAdapter(
            dtype=self.dtype_policy, name="adapter", **adapter_settings
        )
        self.adapter.build((None, None, hidden_dim))
        self.built = True
        self.freeze()

    def trained_layers(self):
        return [self.adapter]

    @property
    def call(self):
        """The computation, with the signature of the layer's `call`.

        Keras refuses tensors and numbers together in `**kwargs`, which are the
        arguments of cached decoding.
        """

        def call(*args, **kwargs):
            return self._adapt(*args, **kwargs)

        call.__signature__ = self.signature
        return call

    def _adapt(self, *args, **kwargs):
        outputs = self.layer(*args, **kwargs)
        inputs = first_tensor(self.signature, *args, **kwargs)
        update = self.adapter(inputs)
        if isinstance(outputs, (list, tuple)):
            return (outputs[0] + update, *outputs[1:])
        return outputs + update

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


def first_tensor(signature, *args, **kwargs):
    """The first tensor of a call, in the order of the signature."""
    arguments = signature.bind(*args, **kwargs).arguments
    return keras.tree.flatten(next(iter(arguments.values())))[0]
