import keras
import numpy as np
import pytest

from keras_coda.layers.dense import add_dense
from keras_coda.layers.dense import call_dense
from tests.backend_helpers import gradient
from tests.backend_helpers import to_numpy

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(2, 5, 3, 4)).astype("float32")

LAYERS = [
    keras.layers.Dense(6, bias_initializer="normal"),
    keras.layers.Dense(6, "relu", bias_initializer="normal"),
    keras.layers.Dense(6, use_bias=False),
    keras.layers.Dense(6, bias_initializer="normal", dtype="mixed_bfloat16"),
    keras.layers.EinsumDense(
        "abcd,cde->abe", (None, 6), bias_axes="e", bias_initializer="normal"
    ),
    keras.layers.EinsumDense(
        "...d,def->...ef",
        (3, 5, 2, 2),
        bias_axes="ef",
        bias_initializer="normal",
    ),
    # Not contracted as of a matrix, and a bias that is not of all units.
    keras.layers.EinsumDense("abcd,abde->abce", (5, 3, 6), bias_axes="e"),
    keras.layers.EinsumDense(
        "abcd,def->abcef",
        (5, 3, 2, 2),
        bias_axes="f",
        bias_initializer="normal",
    ),
    keras.layers.LayerNormalization(),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_a_dense_layer_returns_what_keras_returns(layer):
    expected = layer(INPUTS)
    outputs = call_dense(layer, keras.ops.convert_to_tensor(INPUTS))
    assert outputs.dtype == expected.dtype
    # bfloat16 is rounded after the product, and again after the sum.
    tolerance = 1e-5 if layer.compute_dtype == "float32" else 0.02
    np.testing.assert_allclose(
        to_numpy(outputs), to_numpy(expected), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("scale", [1, 0.5])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_dense_layer_is_added_to_a_residual(scale, dtype):
    layer = keras.layers.Dense(6, bias_initializer="normal", dtype=dtype)
    rows, residual = (
        keras.ops.cast(RNG.normal(size=shape), layer.compute_dtype)
        for shape in ((2, 5, 4), (2, 5, 6))
    )
    expected = to_numpy(residual) + scale * to_numpy(layer(rows))
    outputs = add_dense(residual, layer, rows, scale)
    tolerance = 1e-5 if dtype == "float32" else 0.05
    np.testing.assert_allclose(to_numpy(outputs), expected, atol=tolerance)


def test_gradients_of_a_sum_that_is_fused():
    layer = keras.layers.Dense(4, bias_initializer="normal")
    layer.build((None, 4))

    def function(inputs):
        hidden = call_dense(layer, inputs)
        return add_dense(inputs, layer, hidden, 0.5)

    direction = RNG.normal(size=(2, 4))
    kernel = to_numpy(layer.kernel).astype("float64")
    expected = direction + 0.5 * direction @ kernel.T @ kernel.T
    inputs = RNG.normal(size=(2, 4))
    np.testing.assert_allclose(
        gradient(function, inputs, direction), expected, rtol=1e-4, atol=1e-5
    )
