"""One declarative check of what every layer has to do."""

import json

import keras
import numpy as np

from tests.backend_helpers import jit
from tests.backend_helpers import to_numpy


def check_layer(
    make_layer,
    input_shape,
    output_shape,
    num_trainable_weights,
    num_non_trainable_weights=0,
    mixed_output_dtype="bfloat16",
):
    """Checks config, build, shapes, training and dtypes of a layer.

    Args:
        make_layer: function of keyword arguments for the layer, such as
            `dtype`, that makes a new one.
        input_shape: tuple of int, the batch size included.
        output_shape: shape of the output, the batch size included; a list of
            shapes for several outputs, `None` for an output that is `None`.
        num_trainable_weights: int, how many weights it trains.
        num_non_trainable_weights: int, how many it does not.
        mixed_output_dtype: dtype of the first output under mixed_bfloat16.
    """
    inputs = np.random.default_rng(0).normal(size=input_shape)
    inputs = inputs.astype("float32")

    _check_config(make_layer())

    layer = make_layer()
    layer.build((None, *input_shape[1:]))
    assert layer.built
    assert len(layer.trainable_weights) == num_trainable_weights
    assert len(layer.non_trainable_weights) == num_non_trainable_weights
    assert layer.supports_jit

    eager_outputs = layer(inputs)
    assert _shapes(eager_outputs) == output_shape
    symbolic_outputs = layer(keras.Input(batch_shape=input_shape))
    assert _shapes(symbolic_outputs) == output_shape
    assert _dtypes(symbolic_outputs) == _dtypes(eager_outputs)
    unbuilt_outputs = make_layer()(keras.Input(input_shape[1:]))
    assert _shapes(unbuilt_outputs) == _free_batch(output_shape)

    _check_fit(make_layer(), inputs)
    _check_mixed_precision(make_layer, inputs, mixed_output_dtype)


def randomize_weights(layer, seed=0):
    """Gives every weight of a built layer a random value of order one."""
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        fan_in = weight.shape[0] if len(weight.shape) > 1 else 4
        values = rng.normal(size=weight.shape) / np.sqrt(fan_in)
        if weight.name in ("scale", "gamma"):
            values += 1.0
        weight.assign(values)


def _check_config(layer):
    config = layer.get_config()
    json.dumps(config)
    assert type(layer).from_config(config).get_config() == config
    revived = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(revived) is type(layer)
    assert revived.get_config() == config


def _check_fit(layer, inputs):
    model = _Trainable(layer)
    model.compile("sgd", "mse")
    targets = np.full(_first_shape(layer(inputs)), 0.3, "float32")
    model.fit(inputs, targets, batch_size=len(inputs), verbose=0)
    assert to_numpy(model.shift) != 0.0
    for weight in model.weights:
        assert np.isfinite(to_numpy(weight)).all()


def _check_mixed_precision(make_layer, inputs, output_dtype):
    layer = make_layer(dtype="mixed_bfloat16")
    layer.build(inputs.shape)
    output = keras.tree.flatten(jit(layer)(inputs))[0]
    assert keras.backend.standardize_dtype(output.dtype) == output_dtype
    assert np.isfinite(to_numpy(output)).all()
    for weight in layer.weights:
        assert weight.dtype == "float32"


class _Trainable(keras.Model):
    """The first output of a layer, and a weight for layers without any."""

    def __init__(self, layer):
        super().__init__(name="trainable")
        self.layer = layer
        self.shift = self.add_weight(shape=(), initializer="zeros")

    def call(self, inputs):
        outputs = keras.tree.flatten(self.layer(inputs + self.shift))
        return outputs[0] + self.shift


def _first_shape(outputs):
    return tuple(keras.tree.flatten(outputs)[0].shape)


def _shapes(outputs):
    if isinstance(outputs, (list, tuple)):
        return [_shapes(output) for output in outputs]
    return None if outputs is None else tuple(outputs.shape)


def _dtypes(outputs):
    return [
        keras.backend.standardize_dtype(output.dtype)
        for output in keras.tree.flatten(outputs)
        if output is not None
    ]


def _free_batch(shape):
    if isinstance(shape, list):
        return [_free_batch(item) for item in shape]
    return None if shape is None else (None, *shape[1:])
