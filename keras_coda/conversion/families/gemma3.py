"""Gemma 3: the blocks of Gemma, whose heads are normalised."""

import dataclasses

import keras
from keras import ops

from keras_coda.conversion.gemma_decoder import GEMMA
from keras_coda.conversion.gemma_decoder import GemmaBlock
from keras_coda.conversion.gemma_decoder import GemmaConditionalBlock
from keras_coda.conversion.registration import register_family


class Gemma3Block(GemmaBlock):
    """EmbeddingGemma is bidirectional, within windows of both sides."""

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        self.causal = not layer.use_bidirectional_attention

    def query(self, rows):
        return self._normalized("query_norm", super().query(rows))

    def key(self, rows):
        return self._normalized("key_norm", super().key(rows))

    def _normalized(self, name, heads):
        # The norms stay frozen, as all that is inside attention.
        if not self.attention.use_query_key_norm:
            return heads
        return getattr(self.attention, name)(heads)

    def is_near(self, distances):
        if self.causal:
            return super().is_near(distances)
        after = self.window // 2
        before = self.window - after - 1
        return ops.logical_and(distances >= -before, distances <= after)


class Gemma3ConditionalBlock(GemmaConditionalBlock):
    def call(
        self,
        x,
        padding_mask=None,
        vision_mask=None,
        pinned=None,
        training=None,
    ):
        return super().call(x, padding_mask, pinned=pinned, training=training)

    def compute_output_spec(
        self, x, padding_mask=None, vision_mask=None, **kwargs
    ):
        # When a model is converted.
        if vision_mask is not None:
            raise ValueError(
                "Gemma 3 is converted without its vision encoder alone: images "
                "attend to what comes after them, and are not routed. Make the "
                "backbone with `vision_encoder=None`."
            )
        return keras.KerasTensor(x.shape, dtype=self.compute_dtype)


register_family(
    dataclasses.replace(
        GEMMA,
        backbone="Gemma3Backbone",
        block_cls=Gemma3Block,
        layer_cls=Gemma3ConditionalBlock,
    )
)
