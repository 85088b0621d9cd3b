"""CLIP: pre-LN blocks in two towers, the text tower's causal."""

from keras import ops

from keras_coda.conversion.encoder_block import CLIP_ENCODER
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.token_positions import token_positions


def is_pooled(inputs):
    # EOS has the highest id; what follows the first EOS is padding.
    token_ids = inputs["token_ids"]
    eos = ops.argmax(token_ids, axis=-1, keepdims=True)
    return ops.equal(token_positions(token_ids), eos)


register_family(
    Family(
        backbone="CLIPVisionEncoder",
        parts=CLIP_ENCODER,
        blocks="encoder_layers",
        num_prefix_tokens=1,
        pooled="class token",
    )
)
register_family(
    Family(
        backbone="CLIPTextEncoder",
        parts=CLIP_ENCODER,
        blocks="encoder_layers",
        pinned=is_pooled,
        pooled="EOS",
    )
)
register_family(
    Family(
        backbone="CLIPBackbone",
        blocks=None,
        pooled="class token, EOS",
        routed="both towers",
    )
)
