import numpy as np

from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import VOCABULARY_SIZE
from tests.conversion.models import tokens
from tests.conversion.tiny import TinyModel

NUM_FRAMES = 8
VIDEO_PRISM = {
    "num_frames": NUM_FRAMES,
    "patch_size": 4,
    "hidden_dim": HIDDEN_DIM,
    "intermediate_dim": 32,
    "num_heads": 2,
    "num_spatial_layers": 2,
    "num_temporal_layers": 1,
    "num_auxiliary_layers": 1,
    "num_text_layers": 2,
    "vocabulary_size": VOCABULARY_SIZE,
    "attention_logit_soft_cap": 5.0,
    "image_shape": (IMAGE_SIZE, IMAGE_SIZE, 3),
}


def inputs(length=12):
    token_ids, padding_mask = tokens(length)
    rng = np.random.default_rng(0)
    shape = (len(token_ids), NUM_FRAMES, *VIDEO_PRISM["image_shape"])
    return {
        "pixel_values": rng.normal(size=shape).astype("float32"),
        "token_ids": token_ids,
        "padding_mask": padding_mask,
    }


MODELS = [
    TinyModel(
        "VideoPrismBackbone",
        VIDEO_PRISM,
        inputs,
        # The video has no padding, and is routed by the same factor.
        real=lambda outputs, inputs: outputs["text_embeddings"],
        # Of the last text block the class token alone is read.
        without_gradient=("text_encoder_transformer_block_1/router/kernel",),
    )
]
