import keras_hub
import numpy as np

from tests.conversion.models import BERT
from tests.conversion.models import bert_inputs
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    inputs = bert_inputs()
    mask_positions = np.array([[1, 3], [0, 2], [5, 11]])
    return [
        (keras_hub.models.BertTextClassifier(backbone, num_classes=3), inputs),
        (
            keras_hub.models.BertMaskedLM(backbone),
            {**inputs, "mask_positions": mask_positions},
        ),
        (keras_hub.models.BertTextEmbedder(backbone), inputs),
    ]


MODELS = [
    TinyModel(
        "BertBackbone",
        BERT,
        bert_inputs,
        tasks,
        real=lambda outputs, inputs: [
            outputs["pooled_output"],
            outputs["sequence_output"][inputs["padding_mask"].astype(bool)],
        ],
        num_prefix_tokens=1,
    )
]
