"""Tiny models of two towers, one for images and one for texts."""

import functools

import keras_hub

from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import VOCABULARY_SIZE
from tests.conversion.models import randomize
from tests.conversion.models import tokens
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel

LENGTH = 12
TOWER = {
    "hidden_dim": HIDDEN_DIM,
    "num_layers": NUM_LAYERS,
    "num_heads": 2,
    "intermediate_dim": 32,
}
# With names, as in every preset: without, KerasHub gives the layers of a tower
# other names once it is loaded from a file.
VISION = {
    **TOWER,
    "patch_size": 4,
    "image_shape": (IMAGE_SIZE, IMAGE_SIZE, 3),
    "name": "vision_encoder",
}
TEXT = {
    **TOWER,
    "vocabulary_size": VOCABULARY_SIZE,
    "embedding_dim": HIDDEN_DIM,
    "max_sequence_length": LENGTH,
    "name": "text_encoder",
}


def image_inputs(length=None):
    return {"images": vit_inputs()}


def text_inputs(eos_id, length=LENGTH):
    """EOS comes last, first and somewhere in between."""
    token_ids, _ = tokens(length, [length] * 3)
    token_ids = token_ids % (VOCABULARY_SIZE - 3) + 3
    token_ids[token_ids == eos_id] = 3
    for row, position in enumerate((length - 1, 0, 5)):
        token_ids[row, position] = eos_id
    return {"token_ids": token_ids}


def towers(prefix, vision=None, text=None, dtype=None, **config):
    """The config of a tiny backbone of two towers."""
    make_vision = getattr(keras_hub.models, f"{prefix}VisionEncoder")
    make_text = getattr(keras_hub.models, f"{prefix}TextEncoder")
    return {
        "vision_encoder": make_vision(**(vision or VISION), dtype=dtype),
        "text_encoder": make_text(**(text or TEXT), dtype=dtype),
        "dtype": dtype,
        **config,
    }


class TinyTowers(TinyModel):
    """A `TinyModel` of two towers, which have the dtype of the whole."""

    def make(self, seed=0, dtype=None):
        backbone_cls = getattr(keras_hub.models, self.backbone)
        return randomize(backbone_cls(**self.config(dtype=dtype)), seed)


def last_router(tower):
    return f"{tower}_encoder_block_{NUM_LAYERS - 1}/router/kernel"


def two_towers(
    prefix,
    eos_id,
    num_prefix_tokens,
    text_is_pooled=False,
    pooled_last=(),
    **config,
):
    """The tiny models of a family of two towers.

    No real tokens are compared: what follows EOS is routed as any token is.

    Args:
        text_is_pooled: bool. Whether the text encoder itself pools its text.
        pooled_last: the names of the towers of which the last block's outputs
            matter at pinned tokens alone.
    """
    return [
        TinyModel(
            f"{prefix}VisionEncoder",
            VISION,
            image_inputs,
            num_prefix_tokens=num_prefix_tokens,
        ),
        TinyModel(
            f"{prefix}TextEncoder",
            TEXT,
            lambda length=LENGTH: text_inputs(eos_id),
            num_prefix_tokens="auto",
            without_gradient=(
                (last_router("text_encoder"),) if text_is_pooled else ()
            ),
        ),
        TinyTowers(
            f"{prefix}Backbone",
            functools.partial(towers, prefix, **config),
            lambda length=LENGTH: {**image_inputs(), **text_inputs(eos_id)},
            num_prefix_tokens="auto",
            without_gradient=tuple(map(last_router, pooled_last)),
        ),
    ]
