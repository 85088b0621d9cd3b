"""The decoder layers of Llama, and of models made after it."""

import keras
from keras import ops

from keras_coda.conversion.causal_block import CausalBlock
from keras_coda.conversion.causal_block import CausalConditionalBlock
from keras_coda.conversion.causal_block import dense_early
from keras_coda.conversion.causal_block import first_and_last
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.encoder_block import find_part
from keras_coda.conversion.family import Family


class LlamaBlock(CausalBlock):
    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        self.rotary = self.attention.rotary_embedding_layer
        self.heads_dropout = keras.layers.Dropout(
            layer.dropout, dtype=self.dtype_policy, name="heads_dropout"
        )


class LlamaFeedforward(keras.layers.Layer):
    """The feedforward network inside a Llama layer, shared with it."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy, name="feedforward")
        self.intermediate = find_part(layer, "feedforward_intermediate_dense")
        self.gate = find_part(layer, "feedforward_gate_dense")
        self.output_projection = find_part(layer, "feedforward_output_dense")
        self.activation = layer.activation
        self.built = True

    def call(self, inputs):
        # As in KerasHub, whose activation alone is always in float32.
        gate = self.activation(ops.cast(self.gate(inputs), "float32"))
        gate = ops.cast(gate, self.compute_dtype)
        return self.output_projection(self.intermediate(inputs) * gate)


class LlamaConditionalBlock(CausalConditionalBlock):
    """A conditional block with the call signature of KerasHub's layers."""

    def call(
        self,
        decoder_sequence,
        decoder_padding_mask=None,
        decoder_attention_mask=None,
        pinned=None,
        training=None,
    ):
        outputs, _ = self.route(
            decoder_sequence,
            padding_mask=decoder_padding_mask,
            attention_mask=decoder_attention_mask,
            pinned=pinned,
            training=training,
        )
        return outputs


LLAMA = Family(
    backbone="LlamaBackbone",
    parts=Parts(
        attention="self_attention",
        attention_norm="self_attention_layernorm",
        after_attention={"attention_dropout": "self_attention_dropout"},
        feedforward_norm="feedforward_layernorm",
        feedforward={"feedforward": LlamaFeedforward},
        causal=True,
    ),
    block_cls=LlamaBlock,
    layer_cls=LlamaConditionalBlock,
    pinned=first_and_last,
    pooled="first and last token",
    routed="prompt",
    reduction_factor=dense_early,
)
