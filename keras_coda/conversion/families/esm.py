"""ESM and ESM-2, protein language models: pre-LN blocks."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.rotary_block import RotaryConditionalBlock
from keras_coda.conversion.rotary_block import RotaryEncoderBlock


class ESMEncoderBlock(RotaryEncoderBlock):
    """Its dropout comes before the layer normalisations."""

    def rotate(self, heads, positions):
        if not self.attention.use_rotary:
            return heads
        return super().rotate(heads, positions)

    def attention_input(self, inputs):
        return super().attention_input(self.feedforward_dropout(inputs))

    def residual_update(self, routed, training=None):
        attended = self.attend(routed, training)
        dropout = self.feedforward_dropout
        hidden = dropout(routed.rows + attended, training=training)
        hidden = self.intermediate(self.feedforward_norm(hidden))
        outputs = self.output_projection(hidden)
        return attended + dropout(outputs, training=training)


register_family(
    Family(
        backbone="ESMBackbone",
        parts=Parts(
            attention="attention_layer",
            attention_norm="attention_norm",
            feedforward_norm="feedforward_norm",
            feedforward={
                "intermediate": "feedforward_intermediate_dense",
                "output_projection": "feedforward_output_dense",
                "feedforward_dropout": "dropout_layer",
            },
        ),
        block_cls=ESMEncoderBlock,
        layer_cls=RotaryConditionalBlock,
        num_prefix_tokens=1,
        pooled="<cls>",
        lora_layer_names=("q_dense_layer", "v_dense_layer"),
    )
)
