import keras_hub

from tests.conversion.models import VIT
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel


def tasks(backbone):
    return [
        (
            keras_hub.models.ViTImageClassifier(
                backbone, num_classes=3, pooling=pooling
            ),
            vit_inputs(),
        )
        for pooling in ("token", "gap")
    ]


MODELS = [
    TinyModel(
        "ViTBackbone",
        VIT,
        lambda length=None: vit_inputs(),
        tasks,
        num_prefix_tokens=1,
    )
]
