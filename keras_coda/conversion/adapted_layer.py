import inspect

import keras

from keras_coda.layers.partly_frozen import PartlyFrozen


class AdaptedLayer(PartlyFrozen, keras.layers.Layer):
    """A layer with a dense adapter: beside it, or in sequence behind it.

    What replaces a decoder layer. `layer(inputs) + adapter(inputs)`, or
    `adapter(layer(inputs))` as in
    [Bapna and Firat, 2019](https://arxiv.org/abs/1909.08478). It takes the
    arguments of the layer and returns what the layer returns, of which the
    first tensor is adapted. Its weights are shared with the layer and frozen,
    layer normalisations too.

    Args:
        layer: a built layer whose first argument is, or begins with, the
            tensor to adapt, of shape `(batch_size, n, hidden_dim)`.
        hidden_dim: int.
        settings: the `BlockSettings` that say which adapter.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, layer, hidden_dim, settings, **kwargs):
        # Keras asks `call` for it.
        self.signature = inspect.signature(layer.call)
        super().__init__(**kwargs)
        self.layer = layer
        self.adapter = settings.make_adapter(
            dtype=self.dtype_policy, name="adapter"
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
        if isinstance(outputs, (list, tuple)):
            return (self.adapter.adapt(outputs[0], inputs), *outputs[1:])
        return self.adapter.adapt(outputs, inputs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


def first_tensor(signature, *args, **kwargs):
    """The first tensor of a call, in the order of the signature."""
    arguments = signature.bind(*args, **kwargs).arguments
    return keras.tree.flatten(next(iter(arguments.values())))[0]
