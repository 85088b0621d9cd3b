import keras
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import predict
from tests.conversion.tiny import tiny_models

pytestmark = slow_to_compile


def pyramid(backbone, inputs):
    # Keras keeps a dict that it tracks, which JAX does not take.
    outputs = dict(backbone.pyramid_outputs)
    return predict(keras.Model(backbone.input, outputs), inputs)


@pytest.mark.parametrize("name", ["DINOV2Backbone", "DINOV3Backbone"])
@pytest.mark.parametrize("apply_layernorm", [False, True])
def test_pyramid_outputs(name, apply_layernorm):
    tiny = tiny_models()[name]
    dense = tiny.make(apply_layernorm=apply_layernorm, drop_path_rate=0.1)
    expected = pyramid(dense, tiny.inputs())
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    outputs = pyramid(coda, tiny.inputs())
    assert list(coda.pyramid_outputs) == list(dense.pyramid_outputs)
    assert_close(outputs, expected)
    coda.reduction_factor = 4
    reduced = pyramid(coda, tiny.inputs())
    assert_close(reduced["stem"], expected["stem"])
    assert np.abs(reduced["stage1"] - expected["stage1"]).max() > 1e-3


def test_gated_feedforward_network():
    tiny = tiny_models()["DINOV2Backbone"]
    dense = tiny.make(use_swiglu_ffn=True)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    inputs = tiny.inputs()
    assert_close(predict(coda, inputs), predict(dense, inputs))


def test_images_that_are_no_squares():
    dense = tiny_models()["DINOV3Backbone"].make(image_shape=(16, 24, 3))
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    images = np.random.default_rng(0).normal(size=(2, 16, 24, 3))
    inputs = {"pixel_values": images.astype("float32")}
    assert_close(predict(coda, inputs), predict(dense, inputs))
