"""T5: pre-LN encoder and decoder blocks with a relative position bias."""

import keras
import keras_hub
from keras import ops

from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.family import Family
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers import DenseBlock
from keras_coda.layers import ParallelAdapter
from keras_coda.layers.attend import attend_absorbed
from keras_coda.layers.attend import can_absorb
from keras_coda.layers.dense_block import BlockMultiplyAdds
from keras_coda.layers.dense_block import kernel_size
from keras_coda.layers.partly_frozen import PartlyFrozen


class T5EncoderBlock(DenseBlock):
    """KerasHub's T5 encoder layer, ready for routing.

    It shares the weights of `layer` but for the layer normalisations.
    """

    def __init__(self, layer, copy_norm, **kwargs):
        super().__init__(**kwargs)
        self.attention = layer.self_attention
        self.attention_norm = copy_norm(
            layer.self_attention_layer_norm, "attention_norm"
        )
        self.attention_dropout = layer.self_attention_dropout
        self.feedforward = T5Feedforward(layer, name="feedforward")
        self.feedforward_norm = copy_norm(layer.layer_norm, "feedforward_norm")
        self.built = True

    @property
    def norms(self):
        return [self.attention_norm, self.feedforward_norm]

    def attention_input(self, inputs):
        return self.attention_norm(inputs)

    def position_bias(self, length):
        """The relative position bias, of shape `(1, num_heads, n, n)`.

        Only the first block of a stack has one; the others get it passed.
        """
        if not self.attention.use_relative_attention_bias:
            return ops.zeros((1, self.attention.num_heads, length, length))
        return self.attention.compute_bias(length, length)

    def residual_update(
        self,
        rows,
        queries,
        context,
        attention_mask=None,
        position_bias=None,
        training=None,
    ):
        attended = self._attend(
            queries,
            context,
            _add_mask(position_bias, attention_mask),
            training,
        )
        attended = self.attention_dropout(attended, training=training)
        hidden = self.feedforward_norm(rows + attended)
        return attended + self.feedforward(hidden, training=training)

    def _attend(self, queries, context, bias, training):
        attention = self.attention
        heads = (attention.num_heads, attention.key_value_dim)
        projectors = attention.key_projector, attention.value_projector
        query_shape = (*queries.shape[:2], *heads)
        if training or not can_absorb(query_shape, context.shape, *projectors):
            attended, _, _ = attention(
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

    def multiply_adds(self):
        return _multiply_adds(self.attention, self.feedforward)


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
        outputs = self.route(
            hidden_states,
            padding_mask=padding_mask,
            position_bias=position_bias,
            training=training,
        )
        return outputs, position_bias

    def gather_position_bias(self, position_bias, indices, key_indices):
        if key_indices is None:
            return super().gather_position_bias(position_bias, indices, None)
        # It depends on key - query alone: from n - 1 tokens back, the first
        # column upwards, to n - 1 ahead, the first row.
        length = ops.shape(position_bias)[-1]
        by_distance = ops.concatenate(
            [
                ops.flip(position_bias[0, :, 1:, 0], axis=-1),
                position_bias[0, :, 0],
            ],
            axis=-1,
        )
        distances = ops.expand_dims(key_indices, 1) - ops.expand_dims(
            indices, 2
        )
        # (batch_size, k, k, num_heads), a fraction of what gathering rows and
        # then columns moves.
        gathered = ops.take(
            ops.transpose(by_distance), distances + length - 1, axis=0
        )
        return ops.transpose(gathered, (0, 3, 1, 2))

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


class T5DecoderBlock(PartlyFrozen, keras.layers.Layer):
    """KerasHub's T5 decoder layer with two dense parallel adapters.

    One runs beside self-attention, one beside the feedforward network. It
    shares the weights of `layer` but for the layer normalisations.
    """

    def __init__(self, layer, copy_norm, adapter_settings, **kwargs):
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
        self.feedforward = T5Feedforward(layer, name="feedforward")
        self.feedforward_norm = copy_norm(layer.layer_norm, "feedforward_norm")
        self.attention_adapter = ParallelAdapter(
            name="attention_adapter", **adapter_settings
        )
        self.feedforward_adapter = ParallelAdapter(
            name="feedforward_adapter", **adapter_settings
        )

    def build(self, hidden_states_shape):
        self.attention_adapter.build(hidden_states_shape)
        self.feedforward_adapter.build(hidden_states_shape)
        if self.trainable:
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
        if use_causal_mask and position_bias is None:
            attention_mask = _causal_mask(
                ops.shape(hidden_states)[1],
                attention_mask,
                self_attention_cache,
                self_attention_cache_update_index,
            )

        hidden = self.attention_norm(hidden_states)
        attended, position_bias, self_attention_cache = self.attention(
            hidden,
            mask=attention_mask,
            position_bias=position_bias,
            cache=self_attention_cache,
            cache_update_index=self_attention_cache_update_index,
            training=training,
        )
        outputs = (
            hidden_states
            + self.attention_dropout(attended, training=training)
            + self.attention_adapter(hidden)
        )

        attended, _, cross_attention_cache = self.cross_attention(
            self.cross_attention_norm(outputs),
            key_value_states=encoder_hidden_states,
            mask=encoder_attention_mask,
            cache=cross_attention_cache,
            cache_update_index=cross_attention_cache_update_index,
            training=training,
        )
        outputs = outputs + self.cross_attention_dropout(
            attended, training=training
        )

        hidden = self.feedforward_norm(outputs)
        outputs = (
            outputs
            + self.feedforward(hidden, training=training)
            + self.feedforward_adapter(hidden)
        )

        if self_attention_cache is None:
            return outputs, position_bias
        return (
            outputs,
            position_bias,
            self_attention_cache,
            cross_attention_cache,
        )

    def multiply_adds(self, length, encoder_length):
        """Without the adapters, of one sequence of `length`."""
        parts = _multiply_adds(self.attention, self.feedforward)
        cross = _multiply_adds(self.cross_attention, self.feedforward)
        per_token = (
            parts.row_projections
            + parts.context_projections
            + parts.feedforward
            + cross.row_projections
        )
        pairs = length * parts.pair + encoder_length * cross.pair
        return (
            length * (per_token + pairs)
            + encoder_length * cross.context_projections
        )


class T5Feedforward(keras.layers.Layer):
    """The feedforward network inside KerasHub's T5 layer, shared with it."""

    def __init__(self, layer, **kwargs):
        super().__init__(dtype=layer.dtype_policy, **kwargs)
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


class T5Family(Family):
    backbone_cls = keras_hub.models.T5Backbone
    block_cls = T5EncoderBlock
    conditional_block_cls = T5ConditionalBlock
    lora_layer_names = ("query_projector", "value_projector")

    def padding_mask(self, inputs):
        return inputs["encoder_padding_mask"]

    def is_norm(self, layer):
        # KerasHub does not export the class.
        return type(layer).__name__ == "T5LayerNorm"

    def copy_norm(self, norm, name):
        # Its config does not round-trip.
        copy = type(norm)(
            epsilon=norm.epsilon, dtype=norm.dtype_policy, name=name
        )
        copy.build((None, *norm.weight.shape))
        copy.set_weights(norm.get_weights())
        return copy

    def encoder_blocks(self, backbone):
        return backbone.encoder_transformer_layers

    def decoder_blocks(self, backbone):
        return backbone.decoder_transformer_layers

    def other_multiply_adds(
        self, backbone, sequence_length, decoder_sequence_length
    ):
        return sum(
            layer.multiply_adds(decoder_sequence_length, sequence_length)
            for layer in backbone.decoder_transformer_layers
        )

    def decoder_block(self, layer, name, dtype, **adapter_settings):
        return T5DecoderBlock(
            layer,
            self.copy_norm,
            {"dtype": dtype, **adapter_settings},
            name=name,
            dtype=dtype,
        )


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaT5Backbone(CodaBackbone):
    """`keras_hub.models.T5Backbone` with conditional adapters."""

    family = T5Family()


@keras.saving.register_keras_serializable(package="keras_coda")
class CodaT5Seq2SeqLM(CodaTask, keras_hub.models.T5Seq2SeqLM):
    """`keras_hub.models.T5Seq2SeqLM` with conditional adapters."""

    backbone_cls = CodaT5Backbone


def _multiply_adds(attention, feedforward):
    dense = [feedforward.input_projector, feedforward.output_projector]
    if feedforward.gate_projector is not None:
        dense.append(feedforward.gate_projector)
    return BlockMultiplyAdds(
        row_projections=kernel_size(
            attention.query_projector, attention.output_projector
        ),
        context_projections=kernel_size(
            attention.key_projector, attention.value_projector
        ),
        pair=2 * attention.num_heads * attention.key_value_dim,
        absorbed_pair=2 * attention.num_heads * attention.hidden_dim,
        feedforward=kernel_size(*dense),
    )


def _add_mask(position_bias, attention_mask):
    """Folds a bool mask (batch_size, k or 1, m) into a position bias."""
    if attention_mask is None:
        return position_bias
    mask = ops.cast(ops.expand_dims(attention_mask, 1), position_bias.dtype)
    return position_bias + (1.0 - mask) * -1e9


def _causal_mask(length, attention_mask, cache, cache_update_index):
    """Bool mask (batch_size or 1, n, m) of the keys not after the query.

    During cached decoding the queries start at `cache_update_index` and the
    keys are the whole cache.
    """
    num_keys = length if cache is None else ops.shape(cache)[2]
    first_query = 0 if cache_update_index is None else cache_update_index
    queries = ops.expand_dims(ops.arange(length) + first_query, 1)
    mask = ops.expand_dims(queries >= ops.arange(num_keys), 0)
    if attention_mask is None:
        return mask
    return ops.logical_and(mask, ops.cast(attention_mask, "bool"))
