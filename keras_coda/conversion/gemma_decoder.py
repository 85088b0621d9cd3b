"""The decoder layers of Gemma."""

import keras
from keras import ops

from keras_coda.conversion.causal_block import CausalBlock
from keras_coda.conversion.causal_block import CausalConditionalBlock
from keras_coda.conversion.causal_block import dense_early
from keras_coda.conversion.causal_block import first_and_last
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family


class GemmaBlock(CausalBlock):
    """The heads are laid out as by KerasHub's rotary layer.

    KerasHub reorders them after that, queries and keys alike, which no score
    depends on.
    """

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        self.rotary = self.attention.rope_layer
        self.soft_cap = layer.logit_soft_cap
        self.weights_dropout = self.attention.dropout_layer
        if layer.use_sliding_window_attention:
            self.window = layer.sliding_window_size


class GemmaFeedforward(keras.layers.Layer):
    """The feedforward network inside KerasHub's layer, shared with it."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy, name="feedforward")
        self.gate = layer.gating_ffw
        self.intermediate = layer.gating_ffw_2
        self.output_projection = layer.ffw_linear
        self.built = True

    def call(self, inputs):
        gate = ops.gelu(self.gate(inputs), approximate=True)
        return self.output_projection(gate * self.intermediate(inputs))


class GemmaConditionalBlock(CausalConditionalBlock):
    """A conditional block with the call signature of KerasHub's layers."""

    def call(self, x, padding_mask=None, pinned=None, training=None):
        outputs, _ = self.route(
            x, padding_mask=padding_mask, pinned=pinned, training=training
        )
        return outputs


def optional(name):
    """A part that not every layer has."""

    def find(layer):
        part = getattr(layer, name, None)
        return part or keras.layers.Identity(dtype=layer.dtype_policy)

    return find


GEMMA = Family(
    backbone="GemmaBackbone",
    parts=Parts(
        attention="attention",
        attention_norm="pre_attention_norm",
        after_attention={
            "attention_post_norm": optional("post_attention_norm"),
            "attention_dropout": optional("attention_dropout"),
        },
        feedforward_norm="pre_ffw_norm",
        feedforward={
            "feedforward": GemmaFeedforward,
            "feedforward_post_norm": optional("post_ffw_norm"),
        },
        causal=True,
    ),
    block_cls=GemmaBlock,
    layer_cls=GemmaConditionalBlock,
    pinned=first_and_last,
    pooled="first and last token",
    routed="prompt",
    reduction_factor=dense_early,
)
