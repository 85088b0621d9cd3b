"""SigLIP: pre-LN blocks in two towers; images are pooled by attention."""

from keras import ops

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.token_positions import token_positions

PARTS = Parts(
    attention="self_attn",
    attention_norm="layer_norm1",
    feedforward_norm="layer_norm2",
    feedforward={"feedforward": "mlp"},
    causal="use_causal_mask",
)


def is_last(inputs):
    positions = token_positions(inputs["token_ids"])
    return ops.equal(positions, ops.max(positions, axis=-1, keepdims=True))


register_family(
    Family(backbone="SigLIPVisionEncoder", parts=PARTS, blocks="encoder_layers")
)
register_family(
    Family(
        backbone="SigLIPTextEncoder",
        parts=PARTS,
        blocks="encoder_layers",
        pinned=is_last,
        pooled="last token",
    )
)
register_family(
    Family(
        backbone="SigLIPBackbone",
        blocks=None,
        pooled="last token of the text",
        routed="both towers",
    )
)
