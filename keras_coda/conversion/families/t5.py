"""T5: pre-LN encoder and decoder blocks with a relative position bias."""

import keras
from keras import ops

from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.norms import copy_norm
from keras_coda.conversion.registration import register_family
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import attend_absorbed
from keras_coda.layers.attend import can_absorb
from keras_coda.layers.partly_frozen import PartlyFrozen
from keras_coda.ops.masking import mask_scores


class T5EncoderBlock(EncoderBlock):
    """What the blocks share is the position bias of the whole sequence."""

    def position_bias(self, length):
        """The relative position bias, of shape `(1, num_heads, n, n)`.

        Only the first block of a stack has one; the others get it passed.
        """
        if not self.attention.use_relative_attention_bias:
            return ops.zeros((1, self.attention.num_heads, length, length))
        return self.attention.compute_bias(length, length)

    def attend(self, routed, training=None):
        bias = ops.cast(bias_of_pairs(routed), self.compute_dtype)
        if routed.mask is not None:
            bias = mask_scores(bias, ops.expand_dims(routed.mask, 1))
        attention = self.attention
        queries, context = routed.queries, routed.context
        heads = (attention.num_heads, attention.key_value_dim)
        projectors = attention.key_projector, attention.value_projector
        query_shape = (*queries.shape[:2], *heads)
        if training or not can_absorb(query_shape, context.shape, *projectors):
            attended, *_ = attention(
                queries,
                key_value_states=context,
                position_bias=bias,
                training=training,
            )
            return attended
        query = attention.query_projector(queries)
        key_kernel, value_kernel = (
            ops.reshape(projector.kernel, (-1, *heads))
            for projector in projectors
        )
        attended = attend_absorbed(
            ops.reshape(query, (-1, *query_shape[1:])),
            context,
            key_kernel,
            value_kernel,
            bias=bias,
        )
        return attention.output_projector(
            ops.reshape(attended, ops.shape(query))
        )

    def attention_kernels(self):
        attention = self.attention
        return {
            "rows": (attention.query_projector, attention.output_projector),
            "context": (attention.key_projector, attention.value_projector),
            "num_heads": attention.num_heads,
            "head_dim": attention.key_value_dim,
            "absorbs": True,
        }


def bias_of_pairs(routed):
    """The position bias of routed queries, and of keys if they are too."""
    bias = routed.shared
    if routed.context_rows.are_all:
        return routed.pairs(bias)
    # It depends on key - query alone: from n - 1 tokens back, the first column
    # upwards, to n - 1 ahead, the first row.
    length = ops.shape(bias)[-1]
    by_distance = ops.concatenate(
        [ops.flip(bias[0, :, 1:, 0], axis=-1), bias[0, :, 0]], axis=-1
    )
    # (batch_size, k, k, num_heads), a fraction of what gathering rows and then
    # columns moves.
    gathered = ops.take(
        ops.transpose(by_distance), routed.distances + length - 1, axis=0
    )
    return ops.transpose(gathered, (0, 3, 1, 2))


class T5ConditionalBlock(ConditionalTransformerBlock):
    """A conditional block with the call signature of KerasHub's T5 layer.

    The position bias that it returns is that of the whole sequence, without
    the padding mask, for the next block to gather from.
    """

    def call(
        self,
        hidden_states,
        attention_mask=None,
        position_bias=None,
        use_causal_mask=False,
        training=None,
    ):
        # KerasHub passes the padding mask as (batch_size, 1, n).
        padding_mask = None
        if attention_mask is not None:
            padding_mask = ops.squeeze(attention_mask, 1)
        if position_bias is None:
            position_bias = self.block.position_bias(
                ops.shape(hidden_states)[1]
            )
        outputs, _ = self.route(
            hidden_states,
            padding_mask=padding_mask,
            shared=position_bias,
            training=training,
        )
        return outputs, position_bias

    def compute_output_spec(self, hidden_states, *args, **kwargs):
        length = hidden_states.shape[1]
        num_heads = self.block.attention.num_heads
        bias = keras.KerasTensor(
            (1, num_heads, length, length), dtype=self.compute_dtype
        )
        outputs = keras.KerasTensor(
            hidden_states.shape, dtype=self.compute_dtype
        )
        return outputs, bias


def attend_cached(attention, inputs, cache, cache_update_index, **kwargs):
    """KerasHub's T5 attention, which has no cache before KerasHub 0.32."""
    if cache is None:
        attended, position_bias, *_ = attention(inputs, **kwargs)
        return attended, position_bias, None
    return attention(
        inputs, cache=cache, cache_update_index=cache_update_index, **kwargs
    )


class T5DecoderBlock(PartlyFrozen, keras.layers.Layer):
    """KerasHub's T5 decoder layer with two dense adapters.

    One is for self-attention, one for the feedforward network: beside them, or
    in sequence behind them. It shares the weights of `layer` but for the layer
    normalisations.
    """

    def __init__(self, layer, hidden_dim, settings, **kwargs):
        super().__init__(**kwargs)
        self.attention = layer.self_attention
        self.attention_norm = copy_norm(
            layer.self_attention_layer_norm, "attention_norm"
        )
        self.attention_dropout = layer.self_attention_dropout
        self.cross_attention = layer.cross_attention
        self.cross_attention_norm = copy_norm(
            layer.cross_attention_layer_norm, "cross_attention_norm"
        )
        self.cross_attention_dropout = layer.cross_attention_dropout
        self.feedforward = T5Feedforward(layer)
        self.feedforward_norm = copy_norm(layer.layer_norm, "feedforward_norm")
        self.attention_adapter, self.feedforward_adapter = (
            settings.make_adapter(dtype=self.dtype_policy, name=name)
            for name in ("attention_adapter", "feedforward_adapter")
        )
        self.attention_adapter.build((None, None, hidden_dim))
        self.feedforward_adapter.build((None, None, hidden_dim))
        self.built = True
        self.freeze()

    def trained_layers(self):
        return [
            self.attention_norm,
            self.cross_attention_norm,
            self.feedforward_norm,
            self.attention_adapter,
            self.feedforward_adapter,
        ]

    def call(
        self,
        hidden_states,
        attention_mask=None,
        position_bias=None,
        encoder_hidden_states=None,
        encoder_attention_mask=None,
        use_causal_mask=False,
        self_attention_cache=None,
        self_attention_cache_update_index=None,
        cross_attention_cache=None,
        cross_attention_cache_update_index=None,
        training=None,
    ):
        # As in KerasHub, the first block builds the mask and the others get it
        # within the position bias.
        if position_bias is None:
            position_bias = self._position_bias(
                ops.shape(hidden_states)[1],
                attention_mask,
                use_causal_mask,
                self_attention_cache,
                self_attention_cache_update_index,
            )
        encoder_bias = None
        if encoder_attention_mask is not None:
            encoder_bias = mask_scores(
                ops.zeros((1, 1, 1, 1), self.compute_dtype),
                ops.expand_dims(ops.cast(encoder_attention_mask, "bool"), 1),
            )

        hidden = self.attention_norm(hidden_states)
        attended, position_bias, self_attention_cache = attend_cached(
            self.attention,
            hidden,
            self_attention_cache,
            self_attention_cache_update_index,
            position_bias=position_bias,
            training=training,
        )
        attended = self.attention_dropout(attended, training=training)
        outputs = hidden_states + self.attention_adapter.adapt(attended, hidden)

        attended, _, cross_attention_cache = attend_cached(
            self.cross_attention,
            self.cross_attention_norm(outputs),
            cross_attention_cache,
            cross_attention_cache_update_index,
            key_value_states=encoder_hidden_states,
            position_bias=encoder_bias,
            training=training,
        )
        outputs = outputs + self.cross_attention_dropout(
            attended, training=training
        )

        hidden = self.feedforward_norm(outputs)
        update = self.feedforward(hidden, training=training)
        outputs = outputs + self.feedforward_adapter.adapt(update, hidden)

        if self_attention_cache is None:
            return outputs, position_bias
        return (
            outputs,
            position_bias,
            self_attention_cache,
            cross_attention_cache,
        )

    def _position_bias(
        self, length, attention_mask, use_causal_mask, cache, update_index
    ):
        """The relative position bias, with the mask of the keys folded in.

        During cached decoding the queries start at `update_index` and the keys
        are the whole cache.
        """
        attention = self.attention
        num_keys = length if cache is None else ops.shape(cache)[2]
        first_query = 0 if update_index is None else update_index
        bias = ops.zeros((1, 1, 1, 1), self.compute_dtype)
        if attention.use_relative_attention_bias:
            # KerasHub before 0.32 takes no first query.
            start = () if cache is None else (first_query,)
            bias = attention.compute_bias(length, num_keys, *start)
            bias = ops.cast(bias, self.compute_dtype)
        mask = attention_mask
        if use_causal_mask:
            queries = ops.expand_dims(ops.arange(length) + first_query, 1)
            causal = ops.expand_dims(queries >= ops.arange(num_keys), 0)
            mask = causal
            if attention_mask is not None:
                mask = ops.logical_and(causal, ops.cast(attention_mask, "bool"))
        if mask is None:
            return bias
        return mask_scores(bias, ops.expand_dims(ops.cast(mask, "bool"), 1))


class T5Feedforward(keras.layers.Layer):
    """The feedforward network inside KerasHub's T5 layer, shared with it."""

    def __init__(self, layer):
        super().__init__(dtype=layer.dtype_policy, name="feedforward")
        self.input_projector = layer.input_projector
        self.gate_projector = (
            layer.gate_projector if layer.use_gated_activation else None
        )
        self.output_projector = layer.output_projector
        self.dropout = layer.dropout_layer
        self.built = True

    def call(self, inputs, training=None):
        hidden = self.input_projector(inputs)
        if self.gate_projector is not None:
            hidden = hidden * self.gate_projector(inputs)
        hidden = self.dropout(hidden, training=training)
        outputs = self.output_projector(hidden)
        return self.dropout(outputs, training=training)


register_family(
    Family(
        backbone="T5Backbone",
        parts=Parts(
            attention="self_attention",
            attention_norm="self_attention_layer_norm",
            after_attention={"attention_dropout": "self_attention_dropout"},
            feedforward_norm="layer_norm",
            feedforward={"feedforward": T5Feedforward},
        ),
        blocks="encoder_transformer_layers",
        block_cls=T5EncoderBlock,
        layer_cls=T5ConditionalBlock,
        decoder_blocks="decoder_transformer_layers",
        decoder_cls=T5DecoderBlock,
        lora_layer_names=("query_projector", "value_projector"),
        exports=("tf_saved_model", "onnx", "litert", "torch"),
    )
)
