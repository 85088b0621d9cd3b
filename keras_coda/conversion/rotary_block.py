"""Encoder layers with KerasHub's `RoformerAttention`, or a subclass of it."""

import keras_hub
from keras import ops

from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import attend_heads


class RotaryEncoderBlock(EncoderBlock):
    """Attention with rotary positions, those that the routed rows have."""

    takes_prefix = True
    # Whether neighbours are rotated, in the place of the halves of a head.
    rotates_neighbours = False

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        self.rotary_embedding = keras_hub.layers.RotaryEmbedding(
            max_wavelength=self.attention.max_wavelength,
            dtype=self.dtype_policy,
            name="rotary_embedding",
        )

    def rotate(self, heads, positions):
        """Heads, turned by the angles of their positions.

        Args:
            heads: tensor of shape `(batch_size, k, num_heads, head_dim)`.
            positions: int tensor of shape `(batch_size or 1, k)`.
        """
        if self.rotates_neighbours:
            # Scores do not depend on the order in which a head is laid out.
            pairs = ops.reshape(heads, (*ops.shape(heads)[:-1], -1, 2))
            heads = ops.reshape(ops.swapaxes(pairs, -1, -2), ops.shape(heads))
        return self.rotary_embedding(heads, positions=positions)

    def attend(self, routed, training=None):
        attention = self.attention

        def split(inputs):
            shape = (attention.heads, attention.head_size)
            return ops.reshape(inputs, (*ops.shape(inputs)[:2], *shape))

        query = split(attention.q_dense(routed.queries))
        key = split(attention.k_dense(routed.context))
        value = split(attention.v_dense(routed.context))
        attended = attend_heads(
            self.rotate(query, routed.positions),
            self.rotate(key, routed.context_positions),
            value,
            routed.mask,
            prefix=self.prefix,
        )
        shape = (
            *ops.shape(attended)[:2],
            attention.heads * attention.head_size,
        )
        return attention.o_dense(ops.reshape(attended, shape))

    def attention_kernels(self):
        attention = self.attention
        return {
            "rows": (attention.q_dense, attention.o_dense),
            "context": (attention.k_dense, attention.v_dense),
            "num_heads": attention.heads,
            "head_dim": attention.head_size,
        }


class RotaryConditionalBlock(ConditionalTransformerBlock):
    """A conditional block with the call signature of KerasHub's layers.

    Padding is not attended to. KerasHub masks it so on PyTorch; on JAX and
    TensorFlow its mask is that of the queries, and padding changes the outputs
    of the dense model.
    """

    def call(self, x, attention_mask=None, training=None):
        outputs, _ = self.route(
            x, padding_mask=attention_mask, training=training
        )
        return outputs
