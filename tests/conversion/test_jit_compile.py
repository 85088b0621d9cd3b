"""`jit_compile=True` on PyTorch, where Keras compiles layers one by one."""

import shutil

import keras
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import BACKEND
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
from tests.conversion.models import randomize

pytestmark = [
    # PyTorch's own, of what it calls.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
    pytest.mark.skipif(BACKEND != "torch", reason="about PyTorch"),
    pytest.mark.skipif(
        shutil.which("g++") is None, reason="PyTorch compiles C++"
    ),
]


def test_predict_is_compiled_and_follows_the_model():
    keras.utils.set_random_seed(0)
    backbone = bert_backbone()
    coda = keras_coda.coda_wrap(backbone, reduction_factor=2)
    randomize(coda)
    twin = keras_coda.coda_wrap(backbone, reduction_factor=2)
    inputs = bert_inputs()

    def assert_as_eager(inputs):
        twin.set_weights(coda.get_weights())
        twin.reduction_factor = coda.reduction_factor
        # PyTorch adds up in another order.
        assert_close(predict(coda, inputs), predict(twin, inputs), atol=1e-5)

    outputs = coda.output
    optimizer = keras.optimizers.SGD(1e-3)
    loss = {name: "mse" for name in outputs}
    coda.compile(optimizer, loss, jit_compile=True)
    assert_as_eager(inputs)
    # Weights that change are those that the compiled function reads, and the
    # batch size is not part of it.
    compiled = coda.predict_function
    labels = predict(twin, inputs)
    labels = {name: 1 + value for name, value in labels.items()}
    before = coda.evaluate(inputs, labels, verbose=0)
    coda.fit(inputs, labels, verbose=0)
    assert np.max(coda.evaluate(inputs, labels, verbose=0)) < np.max(before)
    assert_as_eager({name: value[:1] for name, value in inputs.items()})
    assert coda.predict_function is compiled
    coda.reduction_factor = 1
    assert coda.predict_function is not compiled
    assert_as_eager(inputs)
