import keras_hub

from tests.conversion.models import BERT
from tests.conversion.models import MASK_POSITIONS
from tests.conversion.models import bert_inputs
from tests.conversion.models import real_tokens
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    inputs = bert_inputs()
    return [
        (
            keras_hub.models.AlbertTextClassifier(backbone, num_classes=3),
            inputs,
        ),
        (
            keras_hub.models.AlbertMaskedLM(backbone),
            {**inputs, "mask_positions": MASK_POSITIONS},
        ),
    ]


MODELS = [
    TinyModel(
        "AlbertBackbone",
        # Two groups of two layers, each group called twice.
        {
            **BERT,
            "num_layers": 4,
            "num_groups": 2,
            "num_inner_repetitions": 2,
            "embedding_dim": 8,
        },
        bert_inputs,
        tasks,
        real=real_tokens,
        num_prefix_tokens=1,
    )
]
