import keras_hub
import numpy as np

from tests.conversion.models import BERT
from tests.conversion.models import tokens
from tests.conversion.tiny import TinyModel


def inputs(length=12):
    token_ids, padding_mask = tokens(length)
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def tasks(backbone):
    mask_positions = np.array([[1, 3], [0, 2], [5, 11]])
    return [
        (
            keras_hub.models.DebertaV3TextClassifier(backbone, num_classes=3),
            inputs(),
        ),
        (
            keras_hub.models.DebertaV3MaskedLM(backbone),
            {**inputs(), "mask_positions": mask_positions},
        ),
    ]


MODELS = [
    TinyModel(
        "DebertaV3Backbone",
        # Buckets of one and of several distances.
        {**BERT, "bucket_size": 8},
        inputs,
        tasks,
        real=lambda outputs, inputs: outputs[
            inputs["padding_mask"].astype(bool)
        ],
        num_prefix_tokens=1,
    )
]
