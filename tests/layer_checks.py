"""One declarative check of what every layer has to do."""

import json

import keras
import numpy as np

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
    symbolic_inputs = keras.Input(batch_shape=input_shape)
    assert _shapes(layer(symbolic_inputs)) == output_shape
    unbuilt_outputs = make_layer()(keras.Input(input_shape[1:]))
    assert _shapes(unbuilt_outputs) == _free_batch(output_shape)

    _check_fit(make_layer(), inputs)
    _check_mixed_precision(make_layer, inputs, mixed_output_dtype)


def _check_config(layer):
    config = layer.get_config()
    json.dumps(config)
    assert type(layer).from_config(config).get_config() == config
    revived = keras.layers.deserialize(keras.layers.serialize(layer))
    assert type(revived) is type(layer)
    assert revived.get_config() == config


def _check_fit(layer, inputs):
    # What stands before it gives a layer without weights something to train.
    before = keras.layers.Dense(inputs.shape[-1])
    before.build(inputs.shape)
    model = _FirstOutput(before, layer)
    model.compile("sgd", "mse")
    targets = np.ones(_first_shape(layer(inputs)), "float32")
    weights = to_numpy(before.kernel)
    history = model.fit(inputs, targets, batch_size=len(inputs), verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    assert np.any(to_numpy(before.kernel) != weights)


def _check_mixed_precision(make_layer, inputs, output_dtype):
    layer = make_layer(dtype="mixed_bfloat16")
    output = keras.tree.flatten(layer(inputs))[0]
    assert keras.backend.standardize_dtype(output.dtype) == output_dtype
    assert np.isfinite(to_numpy(output)).all()
    for weight in layer.weights:
        assert weight.dtype == "float32"


@keras.saving.register_keras_serializable(package="tests")
class _FirstOutput(keras.Model):
    """The first output of a layer, as a model that can be fitted."""

    def __init__(self, before, layer, **kwargs):
        super().__init__(**kwargs)
        self.before = before
        self.layer = layer

    def call(self, inputs):
        return keras.tree.flatten(self.layer(self.before(inputs)))[0]


def _first_shape(outputs):
    return tuple(keras.tree.flatten(outputs)[0].shape)


def _shapes(outputs):
    if isinstance(outputs, (list, tuple)):
        return [_shapes(output) for output in outputs]
    return None if outputs is None else tuple(outputs.shape)


def _free_batch(shape):
    if isinstance(shape, list):
        return [_free_batch(item) for item in shape]
    return None if shape is None else (None, *shape[1:])
