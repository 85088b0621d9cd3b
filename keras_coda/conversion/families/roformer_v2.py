"""RoFormerV2: post-LN blocks with rotary positions."""

import dataclasses

from keras_coda.conversion.encoder_block import TRANSFORMER_ENCODER
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.rotary_block import RotaryConditionalBlock
from keras_coda.conversion.rotary_block import RotaryEncoderBlock


class RoformerV2EncoderBlock(RotaryEncoderBlock):
    rotates_neighbours = True


register_family(
    Family(
        backbone="RoformerV2Backbone",
        parts=dataclasses.replace(
            TRANSFORMER_ENCODER,
            attention="attention_layer",
            attention_norm="attention_norm",
            after_attention={"attention_dropout": "dropout_layer"},
            feedforward_norm="feedforward_norm",
            feedforward={
                **TRANSFORMER_ENCODER.feedforward,
                "feedforward_dropout": "dropout_layer",
            },
            pre_norm=False,
        ),
        block_cls=RoformerV2EncoderBlock,
        layer_cls=RotaryConditionalBlock,
        num_prefix_tokens=1,
        pooled="[CLS]",
        lora_layer_names=("q_dense_layer", "v_dense_layer"),
    )
)
