import keras
import numpy as np
import pytest

import keras_coda
from keras_coda.layers import ConditionalTransformerBlock
from tests import reference
from tests.backend_helpers import BACKEND
from tests.layers.test_conditional_transformer_block import INPUTS
from tests.layers.test_conditional_transformer_block import assert_close
from tests.layers.test_conditional_transformer_block import predict
from tests.layers.test_conditional_transformer_block import random_layer


def make_model(num_blocks=1):
    layers = [random_layer(reduction_factor=5) for _ in range(num_blocks)]
    return keras.Sequential([keras.Input((10, 8)), *layers])


def expected_outputs(model):
    outputs = INPUTS
    for layer in model.layers:
        outputs = reference.conditional_block(layer, outputs)
    return outputs


def test_a_fitted_model_uses_the_new_value():
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), "mse")

    def outputs_and_loss():
        history = model.fit(INPUTS, INPUTS, verbose=0)
        return predict(model, INPUTS), history.history["loss"][0]

    before = outputs_and_loss()
    assert_close(before[0], expected_outputs(model))
    keras_coda.set_reduction_factor(model, 2)
    after = outputs_and_loss()
    assert_close(after[0], expected_outputs(model))
    for old, new in zip(before, after):
        assert np.abs(old - new).max() > 1e-3


@pytest.mark.skipif(BACKEND == "torch", reason="compiles nothing by default")
def test_each_shape_and_value_is_compiled_once(monkeypatch):
    model = make_model()
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=True)
    calls = []
    route = ConditionalTransformerBlock.route

    def counted(*args, **kwargs):
        calls.append(None)
        return route(*args, **kwargs)

    # Python runs it only for the compiler.
    monkeypatch.setattr(ConditionalTransformerBlock, "route", counted)

    def num_traces(function, *args):
        calls.clear()
        function(*args, batch_size=2, verbose=0)
        return len(calls)

    for value in (5, 2):
        keras_coda.set_reduction_factor(model, value)
        assert num_traces(model.predict, INPUTS) > 0
        assert num_traces(model.fit, INPUTS, INPUTS) > 0
        assert num_traces(model.predict, INPUTS + 1.0) == 0
        assert num_traces(model.fit, INPUTS, INPUTS) == 0


def test_one_value_per_block():
    model = make_model(num_blocks=2)
    keras_coda.set_reduction_factor(model, [2, 1])
    assert [layer.reduction_factor for layer in model.layers] == [2, 1]
    assert_close(predict(model, INPUTS), expected_outputs(model))
    keras_coda.set_reduction_factor(model, 3)
    assert [layer.reduction_factor for layer in model.layers] == [3, 3]


def test_blocks_within_blocks_are_found():
    inner = make_model(num_blocks=2)
    inputs = keras.Input((10, 8))
    outer = keras.Model(inputs, keras.layers.Dense(3)(inner(inputs)))
    before = predict(outer, INPUTS)
    inner_before = predict(inner, INPUTS)
    keras_coda.set_reduction_factor(outer, 1)
    assert [layer.reduction_factor for layer in inner.layers] == [1, 1]
    assert np.abs(predict(outer, INPUTS) - before).max() > 1e-3
    # A model inside, compiled for the old value, follows too.
    assert np.abs(predict(inner, INPUTS) - inner_before).max() > 1e-3


@pytest.mark.parametrize(
    "value, error, match",
    [
        (0.5, ValueError, "reduction_factor=0.5"),
        ([2, 0.5], ValueError, "reduction_factor=0.5"),
        ([2], ValueError, "each of the 2 conditional blocks.*list of 1"),
        ([2, 2, 2], ValueError, "each of the 2 conditional blocks.*list of 3"),
        ([], ValueError, "each of the 2 conditional blocks"),
        ("4", TypeError, "must be a number"),
        ([2, None], TypeError, "must be a number"),
    ],
)
def test_bad_values_change_nothing(value, error, match):
    model = make_model(num_blocks=2)
    with pytest.raises(error, match=match):
        keras_coda.set_reduction_factor(model, value)
    assert [layer.reduction_factor for layer in model.layers] == [5, 5]


def test_a_model_without_conditional_blocks():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="no `ConditionalTransformerBlock`"):
        keras_coda.set_reduction_factor(model, 2)
