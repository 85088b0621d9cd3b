import keras
import numpy as np

import keras_coda
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import predict
from tests.conversion.tiny import tiny_models

pytestmark = slow_to_compile

TINY = tiny_models()["VideoPrismBackbone"]


def test_video_alone():
    dense = TINY.make(num_text_layers=0, num_auxiliary_layers=0)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    video = TINY.inputs()["pixel_values"]
    assert_close(predict(coda, video), predict(dense, video))


def test_reduction_factors_are_kept_in_order():
    factors = [1, 2, 3, 4, 5, 6]
    coda = keras_coda.coda_wrap(TINY.make(), reduction_factor=factors)
    assert coda.reduction_factor == factors
    copy = type(coda).from_config(coda.get_config())
    assert copy.reduction_factor == factors
    assert list(copy.named_blocks) == list(coda.named_blocks)


def test_class_token_of_the_text_is_routed():
    coda = keras_coda.coda_wrap(TINY.make(), reduction_factor=100)
    routing = keras_coda.analysis.routing(coda, TINY.inputs())
    for name, indices in zip(routing.names, routing.indices):
        if name.startswith("text_encoder"):
            np.testing.assert_array_equal(indices, [[12]] * 3)


def test_flops_of_all_sequences():
    coda = keras_coda.coda_wrap(TINY.make(), reduction_factor=1)
    flops = keras_coda.analysis.flops(coda, sequence_length=13)
    # 2 blocks over 8 frames of 16 patches, 1 over the frames of each patch, 1
    # over all, 2 over the text.
    num_tokens = 2 * 8 * 16 + 16 * 8 + 8 * 16 + 2 * 13
    assert flops.dense["feedforward"] == num_tokens * 2 * 16 * 32


def detached(*tensors):
    return [
        keras.ops.convert_to_numpy(keras.ops.stop_gradient(tensor))
        for tensor in tensors
    ]


def test_own_methods_run_the_converted_encoders():
    dense, inputs = TINY.make(), TINY.inputs()
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    video, text = inputs.pop("pixel_values"), tuple(inputs.values())
    expected = dense.get_vision_embeddings(video)
    assert_close(*detached(coda.get_vision_embeddings(video), expected))
    assert_close(
        *detached(
            coda.get_text_embeddings(*text), dense.get_text_embeddings(*text)
        )
    )
    coda.reduction_factor = 4
    reduced, expected = detached(coda.get_vision_embeddings(video), expected)
    assert np.abs(reduced - expected).max() > 1e-3
