from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel

# Without drop path, with which KerasHub's layer fails in training. KerasHub
# names the layers of a model that has a name after it, and a model gets
# one when it is loaded from a file.
DINOV3 = {
    "patch_size": 4,
    "num_layers": NUM_LAYERS,
    "hidden_dim": HIDDEN_DIM,
    "num_heads": 2,
    "intermediate_dim": 32,
    "layer_scale_init_value": 0.5,
    "num_register_tokens": 2,
    "use_gated_mlp": True,
    "use_key_bias": False,
    "attention_dropout": 0.1,
    "image_shape": (IMAGE_SIZE, IMAGE_SIZE, 3),
    "name": "dinov3",
}

MODELS = [
    TinyModel(
        "DINOV3Backbone",
        DINOV3,
        lambda length=None: {"pixel_values": vit_inputs()},
        num_prefix_tokens=3,
    )
]
