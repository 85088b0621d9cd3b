import keras_hub
import numpy as np

import keras_coda
from tests.backend_helpers import slow_to_compile
from tests.conversion.families.generation_test import GenerationTest
from tests.conversion.models import assert_close
from tests.conversion.models import compute
from tests.conversion.tiny import tiny_models


@slow_to_compile
class TestT5Gemma(GenerationTest):
    backbone = "T5GemmaBackbone"


@slow_to_compile
class TestT5Gemma2(GenerationTest):
    backbone = "T5Gemma2Backbone"

    def test_images(self):
        encoder = keras_hub.models.Gemma3VisionEncoder(
            image_size=16,
            patch_size=4,
            pool_size=2,
            num_layers=1,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            output_dim=16,
        )
        tiny = tiny_models()[self.backbone]
        dense = tiny.make(vision_encoder=encoder, eoi_token_index=5)
        images = np.random.default_rng(0).normal(size=(3, 1, 16, 16, 3))
        inputs = {
            **tiny.inputs(),
            "images": images.astype("float32"),
            "vision_indices": np.tile(np.arange(1, 5, dtype="int32"), (3, 1)),
        }
        expected = compute(dense, inputs)
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert_close(compute(coda, inputs), expected)
        # Two variables of the backbone itself.
        paths = {weight.path for weight in coda.trainable_weights}
        assert not any("eoi" in path for path in paths)
