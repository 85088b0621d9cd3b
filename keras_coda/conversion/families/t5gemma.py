"""T5Gemma: pre-LN blocks with norms after attention and feedforward too."""

from keras import ops

from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.layers.attend import attend_heads
from keras_coda.ops.masking import mask_scores


class T5GemmaEncoderBlock(EncoderBlock):
    """Grouped heads at rotary positions; T5Gemma 2 has windows of them.

    KerasHub's T5Gemma has no windows in the encoder, whatever its layer types.
    """

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        is_sliding = getattr(layer, "attention_type", "") == "sliding_attention"
        self.window = layer.sliding_window if is_sliding else None

    def attend(self, routed, training=None):
        attention = self.attention
        query = attention.query_dense(routed.queries)
        key = attention.key_dense(routed.context)
        # Of T5Gemma 2. They stay frozen, as all that is inside attention.
        if getattr(attention, "use_query_key_norm", False):
            query, key = attention.query_norm(query), attention.key_norm(key)
        rotate = attention.rotary_embedding
        attended = attend_heads(
            rotate(query, positions=routed.positions),
            rotate(key, positions=routed.context_positions),
            attention.value_dense(routed.context),
            bias=self.bias(routed),
            scale=attention.scaling,
            soft_cap=attention.logit_soft_cap,
            dropout=attention.dropout_layer,
            training=training,
        )
        return attention.output_dense(attended)

    def bias(self, routed):
        """Added up as in KerasHub, for padding far from any other token."""
        zeros = ops.zeros((1, 1, 1), dtype=self.compute_dtype)
        bias = mask_scores(zeros, routed.mask)
        if self.window is None:
            return bias
        before, after = (self.window + 1) // 2, self.window // 2 + 1
        distances = routed.distances
        inside = ops.logical_and(distances > -before, distances < after)
        return bias + mask_scores(zeros, inside)

    def attention_kernels(self):
        attention = self.attention
        return {
            "rows": (attention.query_dense, attention.output_dense),
            "context": (attention.key_dense, attention.value_dense),
            "num_heads": attention.num_query_heads,
            "head_dim": attention.head_dim,
        }


for backbone in ("T5GemmaBackbone", "T5Gemma2Backbone"):
    register_family(
        Family(
            backbone=backbone,
            parts=Parts(
                attention="self_attn",
                attention_norm="pre_self_attn_layernorm",
                after_attention={
                    "attention_post_norm": "post_self_attn_layernorm",
                    "attention_dropout": "dropout",
                },
                feedforward_norm="pre_feedforward_layernorm",
                feedforward={
                    "feedforward": "mlp",
                    "feedforward_post_norm": "post_feedforward_layernorm",
                    "feedforward_dropout": "dropout",
                },
            ),
            blocks="encoder_layers",
            block_cls=T5GemmaEncoderBlock,
            decoder_blocks="decoder_layers",
        )
    )
