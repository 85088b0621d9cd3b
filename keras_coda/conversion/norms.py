"""The layer normalisations of a KerasHub model, which train as copies."""

import keras

_KERAS_NORMS = (keras.layers.LayerNormalization, keras.layers.RMSNormalization)
# KerasHub exports none of its own; these are the ends of their names.
_HUB_NORMS = (
    "LayerNorm",
    "LayerNormalization",
    "RMSNorm",
    "RMSNormalization",
    "RoformerNorm",
)


def is_norm(layer):
    """Whether `layer` is a layer normalisation."""
    if isinstance(layer, _KERAS_NORMS):
        return True
    return type(layer).__name__.endswith(_HUB_NORMS)


def copy_norm(norm, name):
    """A copy, with its weights, of a built layer normalisation.

    Layer normalisations train; were they shared, training would change the
    model that was converted.
    """
    if isinstance(norm, _KERAS_NORMS):
        copy = type(norm).from_config({**norm.get_config(), "name": name})
    else:
        # The configs of some do not round-trip.
        copy = type(norm)(
            epsilon=norm.epsilon, dtype=norm.dtype_policy, name=name
        )
    copy.build((None, *norm.weights[0].shape))
    copy.set_weights(norm.get_weights())
    return copy
