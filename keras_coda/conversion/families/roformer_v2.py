"""RoFormerV2: post-LN blocks with rotary positions."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.rotary_block import RotaryConditionalBlock
from keras_coda.conversion.rotary_block import RotaryEncoderBlock


class RoformerV2EncoderBlock(RotaryEncoderBlock):
    rotates_neighbours = True


register_family(
    Family(
        backbone="RoformerV2Backbone",
        parts=Parts(
            attention="attention_layer",
            attention_norm="attention_norm",
            after_attention={"attention_dropout": "dropout_layer"},
            feedforward_norm="feedforward_norm",
            feedforward={
                "intermediate": "feedforward_intermediate_dense",
                "output_projection": "feedforward_output_dense",
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
