import keras_hub

from tests.conversion.models import VIT
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel

DEIT = {**VIT, "intermediate_dim": VIT["mlp_dim"]}
del DEIT["mlp_dim"]


def tasks(backbone):
    return [
        (
            keras_hub.models.DeiTImageClassifier(
                backbone, num_classes=3, pooling=pooling
            ),
            vit_inputs(),
        )
        for pooling in ("token", "gap")
    ]


MODELS = [
    TinyModel(
        "DeiTBackbone",
        DEIT,
        lambda length=None: vit_inputs(),
        tasks,
        num_prefix_tokens=2,
    )
]
