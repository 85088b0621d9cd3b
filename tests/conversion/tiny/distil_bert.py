import keras_hub

from tests.conversion.models import BERT
from tests.conversion.models import MASK_POSITIONS
from tests.conversion.models import real_tokens
from tests.conversion.models import roberta_inputs
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    inputs = roberta_inputs()
    return [
        (
            keras_hub.models.DistilBertTextClassifier(
                backbone, num_classes=3, hidden_dim=8
            ),
            inputs,
        ),
        (
            keras_hub.models.DistilBertMaskedLM(backbone),
            {**inputs, "mask_positions": MASK_POSITIONS},
        ),
    ]


MODELS = [
    TinyModel(
        "DistilBertBackbone",
        BERT,
        roberta_inputs,
        tasks,
        real=real_tokens,
        num_prefix_tokens=1,
    )
]
