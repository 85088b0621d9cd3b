"""Configs of models, as Keras serialises them."""

import keras

from keras_coda.conversion.quantization import quantize_alike


def with_dtype(serialized, dtype):
    """A serialised backbone, and those inside it, in another dtype."""
    config = {
        key: with_dtype(value, dtype) if is_serialized(value) else value
        for key, value in serialized["config"].items()
    }
    return {**serialized, "config": {**config, "dtype": dtype}}


def is_serialized(value):
    """Whether a config's value is that of a model with a dtype."""
    config = value.get("config") if isinstance(value, dict) else None
    return isinstance(config, dict) and "dtype" in config


def copy_model(model):
    copy = keras.saving.deserialize_keras_object(serialize_uncompiled(model))
    quantize_alike(copy, model)
    copy.set_weights(model.get_weights())
    return copy


def serialize_uncompiled(model):
    """The config of a model, without what `compile` and `build` add."""
    serialized = keras.saving.serialize_keras_object(model)
    keys = ("module", "class_name", "config", "registered_name")
    return {key: serialized[key] for key in keys}
