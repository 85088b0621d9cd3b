"""MetaCLIP 2: pre-LN blocks in two towers, the text tower's causal."""

from keras import ops

from keras_coda.conversion.encoder_block import CLIP_ENCODER
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.token_positions import token_positions

# What `MetaCLIP2Backbone` pools.
EOS_ID = 2


def is_pooled(inputs):
    # The first EOS, or the first token if there is none.
    token_ids = inputs["token_ids"]
    is_eos = ops.cast(ops.equal(token_ids, EOS_ID), "int32")
    first = ops.argmax(is_eos, axis=-1, keepdims=True)
    return ops.equal(token_positions(token_ids), first)


register_family(
    Family(
        backbone="MetaCLIP2VisionEncoder",
        parts=CLIP_ENCODER,
        blocks="encoder_layers",
        num_prefix_tokens=1,
        pooled="class token",
    )
)
register_family(
    Family(
        backbone="MetaCLIP2TextEncoder",
        parts=CLIP_ENCODER,
        blocks="encoder_layers",
        pinned=is_pooled,
        pooled="EOS",
    )
)
register_family(
    Family(
        backbone="MetaCLIP2Backbone",
        blocks=None,
        pooled="class token, EOS",
        routed="both towers",
    )
)
