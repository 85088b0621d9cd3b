import keras_hub

from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel
from tests.conversion.tiny.dinov2 import DINOV2


def config():
    return {
        "image_encoder": keras_hub.models.DINOV2Backbone(**DINOV2),
        "reassemble_factors": [2, 1],
        "neck_hidden_dims": [8, 8],
        "fusion_hidden_dim": 8,
        "head_hidden_dim": 4,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2"],
    }


def tasks(backbone):
    make = keras_hub.models.DepthAnythingDepthEstimator
    return [
        (make(backbone, "relative"), vit_inputs()),
        (make(backbone, "metric", max_depth=10.0), vit_inputs()),
    ]


MODELS = [
    TinyModel(
        "DepthAnythingBackbone",
        config,
        lambda length=None: vit_inputs(),
        tasks,
        num_prefix_tokens="auto",
    )
]
