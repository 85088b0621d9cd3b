"""DeBERTaV3: post-LN blocks with disentangled attention to positions."""

import dataclasses

import keras
from keras import ops

from keras_coda.conversion.encoder_block import TRANSFORMER_ENCODER
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import find_part
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import weigh


class DebertaV3EncoderBlock(EncoderBlock):
    """What the blocks share are embeddings of relative positions.

    Content attends to content, content to positions and positions to content:
    each embedding has a key and a query in every block.
    """

    def part(self, name):
        return find_part(self.attention, name)

    def attend(self, routed, training=None):
        # KerasHub repeats the embeddings for each batch element, and projects
        # them as often.
        dropout = self.part("attention_dropout")
        embeddings = dropout(routed.shared[:1], training=training)
        scale = self.attention.scale_factor
        query = self.part("query")(routed.queries) * scale
        position_query = self.part("query")(embeddings)[0] * scale
        key = self.part("key")(routed.context)
        position_key = self.part("key")(embeddings)[0]

        index = self.bucket(-routed.distances) + embeddings.shape[1] // 2
        index = ops.expand_dims(ops.clip(index, 0, embeddings.shape[1] - 1), 1)
        # Of each row and each embedding, of which a pair has one.
        to_position = ops.einsum("bkhd,phd->bhkp", query, position_key)
        from_position = ops.einsum("bmhd,phd->bhmp", key, position_query)
        from_position = ops.take_along_axis(
            from_position, ops.swapaxes(index, 2, 3), axis=3
        )
        scores = (
            ops.einsum("bkhd,bmhd->bhkm", query, key)
            + ops.take_along_axis(to_position, index, axis=3)
            + ops.swapaxes(from_position, 2, 3)
        )

        # As in KerasHub: at least float32.
        dtype = keras.backend.result_type(scores.dtype, "float32")
        scores = ops.cast(scores, dtype)
        mask = routed.mask
        if mask is not None:
            mask = ops.expand_dims(mask, 1)
        weights = ops.cast(weigh(scores, mask), self.compute_dtype)
        attended = ops.einsum(
            "bhkm,bmhd->bkhd",
            dropout(weights, training=training),
            self.part("value")(routed.context),
        )
        merged = ops.reshape(attended, ops.shape(routed.queries))
        return self.part("attention_output")(merged)

    def bucket(self, distances):
        """One bucket each for near distances, wider and wider ones for far."""
        attention = self.attention
        size = ops.abs(distances)
        near = attention.bucket_size // 2
        # In the order of KerasHub, for where rounding up decides.
        far = ops.log(ops.cast(ops.maximum(size, near), "float32") / near)
        last = (attention.max_position_embeddings - 1) / near
        far = far * (near - 1) / ops.log(ops.cast(last, "float32"))
        far = near + ops.cast(ops.ceil(far), "int32")
        return ops.where(size <= near, distances, ops.sign(distances) * far)

    def num_positions(self, length):
        """How many embeddings the distances of a sequence are looked up in."""
        span = self.attention.bucket_size
        if isinstance(length, int) and length <= span // 2 + 1:
            return 2 * length - 1
        return 2 * span

    def reachable(self, embeddings, length):
        """These embeddings; the middle one is that of distance 0."""
        span = self.attention.bucket_size
        reach = self.num_positions(length) // 2
        return embeddings[:, span - reach : span + reach + 1]

    def attention_kernels(self):
        return {
            "rows": (self.part("query"), self.part("attention_output")),
            "context": (self.part("key"), self.part("value")),
            "num_heads": self.attention.num_heads,
            "head_dim": self.attention.attn_head_size,
            "num_positions": self.num_positions,
        }


class DebertaV3ConditionalBlock(ConditionalTransformerBlock):
    """A conditional block with the call signature of KerasHub's layer."""

    def call(
        self,
        inputs,
        rel_embeddings,
        padding_mask=None,
        attention_mask=None,
        training=None,
    ):
        outputs, _ = self.route(
            inputs,
            padding_mask=padding_mask,
            attention_mask=attention_mask,
            shared=self.block.reachable(rel_embeddings, inputs.shape[1]),
            training=training,
        )
        return outputs


register_family(
    Family(
        backbone="DebertaV3Backbone",
        parts=dataclasses.replace(TRANSFORMER_ENCODER, pre_norm=False),
        block_cls=DebertaV3EncoderBlock,
        layer_cls=DebertaV3ConditionalBlock,
        num_prefix_tokens=1,
        pooled="[CLS]",
    )
)
