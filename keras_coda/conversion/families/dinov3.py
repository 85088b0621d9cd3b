"""DINOv3: pre-LN blocks with layer scale and rotary positions of patches."""

from keras import ops

from keras_coda.conversion.encoder_block import DINO_ENCODER
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import attend_heads


class DINOV3EncoderBlock(EncoderBlock):
    """What the blocks share is cosine and sine of the angles of each token."""

    takes_prefix = True

    def attend(self, routed, training=None):
        attention = self.attention
        query = self.split_heads(attention.query_dense(routed.queries))
        key = self.split_heads(attention.key_dense(routed.context))
        value = self.split_heads(attention.value_dense(routed.context))
        attended = attend_heads(
            rotate(query, routed.shared, routed.positions),
            rotate(key, routed.shared, routed.context_positions),
            value,
            routed.mask,
            prefix=self.prefix,
        )
        attended = ops.reshape(attended, ops.shape(routed.queries))
        attended = attention.dropout(attended, training=training)
        return attention.output_dense(attended)

    def split_heads(self, rows):
        heads = (self.attention.num_heads, self.attention.head_dim)
        return ops.reshape(rows, (*ops.shape(rows)[:2], *heads))

    def attention_kernels(self):
        attention = self.attention
        return {
            "rows": (attention.query_dense, attention.output_dense),
            "context": (attention.key_dense, attention.value_dense),
            "num_heads": attention.num_heads,
            "head_dim": attention.head_dim,
        }


def rotate(heads, angles, positions):
    """Rotates `(batch_size, k, num_heads, head_dim)` by the rows' angles."""
    cosine, sine = (
        ops.expand_dims(ops.take(table, positions, axis=0), 2)
        for table in angles
    )
    first, second = ops.split(heads, 2, axis=-1)
    return heads * cosine + ops.concatenate([-second, first], -1) * sine


class DINOV3ConditionalBlock(ConditionalTransformerBlock):
    """A conditional block that gets the angles of all tokens passed."""

    def call(self, inputs, position_embeddings, training=None):
        outputs, _ = self.route(
            inputs, shared=position_embeddings, training=training
        )
        return outputs


def run_encoder(layer, call, inputs, position_embeddings, num_prefix_tokens):
    cosine, sine = position_embeddings
    # The leading tokens are no patches, and are not turned.
    leading = [(num_prefix_tokens, 0), (0, 0)]
    angles = ops.pad(cosine, leading, constant_values=1), ops.pad(sine, leading)
    outputs, pyramid = inputs, {}
    for number, block in enumerate(layer.layers, start=1):
        outputs = call(block, outputs, position_embeddings=angles)
        pyramid[f"stage{number}"] = outputs
    return outputs, pyramid


register_family(
    Family(
        backbone="DINOV3Backbone",
        parts=DINO_ENCODER,
        blocks=lambda backbone: backbone.encoder.layers,
        block_cls=DINOV3EncoderBlock,
        layer_cls=DINOV3ConditionalBlock,
        run={"DINOV3Encoder": run_encoder},
        num_prefix_tokens=lambda backbone: 1 + backbone.num_register_tokens,
        pooled="class and register tokens",
        lora_layer_names=("q_proj", "v_proj"),
    )
)
