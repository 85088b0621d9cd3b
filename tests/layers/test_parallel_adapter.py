import keras
import numpy as np
import pytest

from keras_coda.layers import ParallelAdapter
from tests.backend_helpers import to_numpy
from tests.layer_checks import check_layer
from tests.layer_checks import randomize_weights

INPUTS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


@pytest.mark.parametrize(
    "arguments",
    [{"adapter_dim": 4}, {"adapter_dim": 3, "activation": "gelu", "scale": 2}],
)
def test_basics(arguments):
    check_layer(
        lambda **kwargs: ParallelAdapter(**arguments, **kwargs),
        input_shape=(2, 5, 8),
        output_shape=(2, 5, 8),
        num_trainable_weights=4,
    )


def test_fresh_adapter_adds_nothing():
    outputs = to_numpy(ParallelAdapter(adapter_dim=4)(INPUTS))
    np.testing.assert_array_equal(outputs, np.zeros((2, 5, 8)))


@pytest.mark.parametrize(
    "activation, function",
    [("relu", lambda x: np.maximum(x, 0.0)), ("tanh", np.tanh)],
)
@pytest.mark.parametrize("scale", [1, 0.5])
def test_values(activation, function, scale):
    adapter = ParallelAdapter(4, activation=activation, scale=scale)
    adapter.build((None, 5, 8))
    randomize_weights(adapter)
    down, down_bias, up, up_bias = adapter.get_weights()
    hidden = function(INPUTS @ down + down_bias)
    np.testing.assert_allclose(
        to_numpy(adapter(INPUTS)), scale * (hidden @ up + up_bias), atol=1e-5
    )


def test_keras_mask_is_passed_on():
    token_ids = np.array([[1, 2, 0], [3, 0, 0]])
    embedding = keras.layers.Embedding(4, 8, mask_zero=True)
    adapter = ParallelAdapter(adapter_dim=4)
    adapter.build((None, None, 8))
    randomize_weights(adapter)
    model = keras.Sequential(
        [embedding, adapter, keras.layers.GlobalAveragePooling1D()]
    )
    outputs = to_numpy(adapter(to_numpy(embedding(token_ids))))
    expected = [outputs[0, :2].mean(0), outputs[1, 0]]
    np.testing.assert_allclose(
        model.predict(token_ids, verbose=0), expected, atol=1e-5
    )


@pytest.mark.parametrize(
    "adapter_dim, error",
    [(0, ValueError), (-3, ValueError), (2.0, TypeError), (None, TypeError)],
)
def test_bad_adapter_dim(adapter_dim, error):
    with pytest.raises(error, match=f"`adapter_dim` must.*={adapter_dim}"):
        ParallelAdapter(adapter_dim=adapter_dim)
