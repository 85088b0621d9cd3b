import keras_hub

from tests.conversion.models import BERT
from tests.conversion.models import MASK_POSITIONS
from tests.conversion.models import bert_inputs
from tests.conversion.models import real_tokens
from tests.conversion.models import task_if_known
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    inputs = bert_inputs()
    return [
        (keras_hub.models.BertTextClassifier(backbone, num_classes=3), inputs),
        (
            keras_hub.models.BertMaskedLM(backbone),
            {**inputs, "mask_positions": MASK_POSITIONS},
        ),
        *task_if_known("BertTextEmbedder", backbone, inputs),
    ]


MODELS = [
    TinyModel(
        "BertBackbone",
        BERT,
        bert_inputs,
        tasks,
        real=real_tokens,
        num_prefix_tokens=1,
    )
]
