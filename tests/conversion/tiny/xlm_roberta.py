import keras_hub

from tests.conversion.models import BERT
from tests.conversion.models import MASK_POSITIONS
from tests.conversion.models import real_tokens
from tests.conversion.models import roberta_inputs
from tests.conversion.models import task_if_known
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    inputs = roberta_inputs()
    return [
        (
            keras_hub.models.XLMRobertaTextClassifier(
                backbone, num_classes=3, hidden_dim=8
            ),
            inputs,
        ),
        (
            keras_hub.models.XLMRobertaMaskedLM(backbone),
            {**inputs, "mask_positions": MASK_POSITIONS},
        ),
        *task_if_known("XLMRobertaTextEmbedder", backbone, inputs),
    ]


MODELS = [
    TinyModel(
        "XLMRobertaBackbone",
        BERT,
        roberta_inputs,
        tasks,
        real=real_tokens,
        num_prefix_tokens=1,
    )
]
