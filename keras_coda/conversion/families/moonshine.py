"""Moonshine: pre-LN blocks with rotary positions in a part of each head."""

from keras import ops

from keras_coda.conversion.adapted_layer import AdaptedLayer
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import attend_heads
from keras_coda.layers.attend import find_dropout


class MoonshineEncoderBlock(EncoderBlock):
    """What the blocks share is the angles of each position."""

    def attend(self, routed, training=None):
        attention, angles = self.attention, routed.shared
        query = attention.query_dense(routed.queries)
        key = attention.key_dense(routed.context)
        attended = attend_heads(
            rotate(query, ops.take(angles, routed.positions, axis=0)),
            rotate(key, ops.take(angles, routed.context_positions, axis=0)),
            attention.value_dense(routed.context),
            mask=routed.mask,
            dropout=find_dropout(attention),
            training=training,
        )
        return attention.output_dense(attended)

    def attention_kernels(self):
        # Nothing absorbs keys that are turned after they are projected.
        return {**super().attention_kernels(), "absorbs": False}


def rotate(heads, angles):
    """Turns pairs of neighbouring features, as many as there are angles."""
    angles = ops.expand_dims(angles, 2)
    # KerasHub's angles have no static width where the length is dynamic.
    width = ops.shape(angles)[-1]
    turned, rest = heads[..., :width], heads[..., width:]
    crossed = ops.stack([-turned[..., 1::2], turned[..., ::2]], axis=-1)
    crossed = ops.reshape(crossed, ops.shape(turned))
    turned = turned * ops.cos(angles) + crossed * ops.sin(angles)
    rotated = ops.concatenate([ops.cast(turned, rest.dtype), rest], axis=-1)
    return ops.reshape(rotated, ops.shape(heads))


class MoonshineConditionalBlock(ConditionalTransformerBlock):
    """A conditional block with the call signature of KerasHub's layer.

    Its attention mask is one of padding, of shape `(batch_size, n)`.
    """

    def call(
        self, inputs, rotary_embedding, attention_mask=None, training=None
    ):
        outputs, _ = self.route(
            inputs,
            padding_mask=attention_mask,
            shared=rotary_embedding,
            training=training,
        )
        return outputs


class MoonshineAdaptedLayer(AdaptedLayer):
    """Of it `MoonshineAudioToText` takes what fills its cache."""

    @property
    def cross_attention(self):
        return self.layer.cross_attention


register_family(
    Family(
        backbone="MoonshineBackbone",
        parts=Parts(
            attention="self_attention_layer",
            attention_norm="self_attention_layer_norm",
            feedforward_norm="feedforward_layer_norm",
            feedforward={"feedforward": "feedforward"},
        ),
        blocks="encoder_blocks",
        block_cls=MoonshineEncoderBlock,
        layer_cls=MoonshineConditionalBlock,
        decoder_blocks="decoder_blocks",
        decoder_cls=MoonshineAdaptedLayer,
    )
)
