import keras_hub
import numpy as np

from tests.conversion.models import BERT
from tests.conversion.models import tokens
from tests.conversion.tiny import TinyModel

CONFIG = {**BERT, "head_size": 8}
del CONFIG["max_sequence_length"]


def inputs(length=12):
    # No padding at the default length: with it the dense model is another on
    # every backend. On JAX and TensorFlow it masks queries in the place of
    # keys, so that real tokens attend to padding.
    token_ids, _ = tokens(length, (12, 12, 12))
    return {"token_ids": token_ids, "segment_ids": np.zeros_like(token_ids)}


def tasks(backbone):
    mask_positions = np.array([[1, 3], [0, 2], [5, 11]])
    return [
        (
            keras_hub.models.RoformerV2TextClassifier(backbone, num_classes=3),
            inputs(),
        ),
        (
            keras_hub.models.RoformerV2MaskedLM(backbone),
            {**inputs(), "mask_positions": mask_positions},
        ),
    ]


MODELS = [
    TinyModel(
        "RoformerV2Backbone",
        CONFIG,
        inputs,
        tasks,
        real=lambda outputs, inputs: outputs[inputs["token_ids"] != 0],
        num_prefix_tokens=1,
    )
]
