import keras

from keras_coda._keras_internals import sublayers
from keras_coda.layers.partly_frozen import PartlyFrozen


class FeatureExtractor(PartlyFrozen, keras.Model):
    """Some of the pyramid outputs of a converted backbone.

    For a backbone that reads them in the place of the last outputs.

    Args:
        backbone: a `CodaBackbone` that has `pyramid_outputs`.
        keys: which of them, in order.
        **kwargs: `name`.
    """

    def __init__(self, backbone, keys, **kwargs):
        pyramid = {key: backbone.pyramid_outputs[key] for key in keys}
        super().__init__(backbone.inputs, pyramid, **kwargs)
        self.dtype_policy = backbone.dtype_policy
        self.num_prefix_tokens = backbone.num_prefix_tokens
        self.trained_ids = {id(layer) for layer in backbone.trained_layers()}

    def trained_layers(self):
        # What these outputs do not depend on is not inside.
        return [
            layer
            for layer in sublayers(self, recursive=True)
            if id(layer) in self.trained_ids
        ]
