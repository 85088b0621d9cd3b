import math
from typing import NamedTuple

import keras
from keras import ops

from keras_coda._keras_internals import get_keras_mask
from keras_coda.layers.attend import is_worth_absorbing
from keras_coda.layers.validation import validate_mask_shape


class BlockMultiplyAdds(NamedTuple):
    """What a block computes, in multiply-adds.

    Attributes:
        row_projections: query and output projection of one token.
        context_projections: key and value projection of one token that is
            attended to.
        pair: score and weighted sum of one token attending to one.
        feedforward: feedforward network on one token.
        absorbed_pair: `pair` with the key and value projection absorbed, see
            `attend_absorbed`; `None` for a block that does not.
    """

    row_projections: int
    context_projections: int
    pair: int
    feedforward: int
    absorbed_pair: int | None = None

    def attention(self, k, m):
        """Projections and attention of k tokens that attend to m: a pair."""
        rows = k * self.row_projections
        context, pairs = m * self.context_projections, k * m * self.pair
        if self.absorbed_pair is not None:
            absorbed = k * self.context_projections, k * m * self.absorbed_pair
            if is_worth_absorbing(sum(absorbed), context + pairs):
                context, pairs = absorbed
        return rows + context, pairs


class DenseBlock(keras.layers.Layer):
    """A Transformer block, cut in the two steps that routing needs.

    Subclass it to make a Transformer block of your own one that
    `keras_coda.layers.ConditionalTransformerBlock` can wrap:

    - `attention_input(inputs)` is what attention reads: the normalised inputs
      of a pre-LN block, the inputs themselves of a post-LN block. Router and
      adapter read it too.
    - `residual_update(rows, queries, context, ...)` is what the block adds to
      some of its rows, `block(rows) - rows`, when those rows attend to
      `context`.
    - `norms` lists the layer normalisations, which stay trainable when the
      rest of the block is frozen.

    The dense block itself, `call`, is both steps on all rows.

    Padding, from `padding_mask` or the Keras mask, is not attended to; the
    Keras mask is passed on.

    Call arguments:
        inputs: float tensor of shape `(batch_size, n, hidden_dim)`.
        padding_mask: optional bool tensor of shape `(batch_size, n)`, false at
            padding, which no token attends to. Defaults to the Keras mask.
        attention_mask: optional bool tensor of shape `(batch_size, n, n)`, or
            `(1, n, n)` for all batch elements, true where a query (axis 1) may
            attend to a key (axis 2).
        training: bool, whether dropout is active.

    Returns:
        Tensor of shape `(batch_size, n, hidden_dim)`.

    Raises:
        ValueError: if a mask has another shape.

    Example:

    A post-LN block that attends and has no feedforward network:

    >>> class AttentionBlock(keras_coda.layers.DenseBlock):
    ...     def build(self, inputs_shape):
    ...         self.attention = keras.layers.MultiHeadAttention(2, key_dim=4)
    ...         self.attention.build(inputs_shape, inputs_shape)
    ...         self.norm = keras.layers.LayerNormalization()
    ...         self.norm.build(inputs_shape)
    ...
    ...     @property
    ...     def norms(self):
    ...         return [self.norm]
    ...
    ...     def attention_input(self, inputs):
    ...         return inputs
    ...
    ...     def residual_update(
    ...         self, rows, queries, context, attention_mask=None, training=None
    ...     ):
    ...         attended = self.attention(
    ...             queries, context, attention_mask=attention_mask
    ...         )
    ...         return self.norm(rows + attended) - rows
    >>> layer = keras_coda.layers.ConditionalTransformerBlock(
    ...     AttentionBlock(), reduction_factor=2
    ... )
    >>> print(tuple(layer(np.ones((2, 6, 8))).shape))
    (2, 6, 8)
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def attention_input(self, inputs):
        """What attention, router and adapter read; shape of `inputs`."""
        raise NotImplementedError

    def residual_update(
        self, rows, queries, context, attention_mask=None, training=None
    ):
        """What the block adds to `rows`.

        Args:
            rows: tensor of shape `(batch_size, k, hidden_dim)`, rows of the
                block's inputs.
            queries: the same rows of `attention_input(inputs)`.
            context: tensor of shape `(batch_size, m, hidden_dim)`, the rows of
                `attention_input(inputs)` to attend to.
            attention_mask: optional bool tensor that broadcasts to
                `(batch_size, k, m)`.
            training: bool, whether dropout is active.

        Returns:
            Tensor of the shape of `rows`.
        """
        raise NotImplementedError

    @property
    def norms(self):
        """The layer normalisations of the built block."""
        raise NotImplementedError

    def multiply_adds(self):
        """The `BlockMultiplyAdds` of the built block.

        Only `keras_coda.analysis.flops` asks for it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it computes. Define "
            "`multiply_adds`, which returns a "
            "`keras_coda.layers.dense_block.BlockMultiplyAdds`."
        )

    def call(
        self, inputs, padding_mask=None, attention_mask=None, training=None
    ):
        rows, padding_mask = split_keras_mask(inputs, padding_mask)
        queries = self.attention_input(rows)
        return rows + self.residual_update(
            rows,
            queries,
            queries,
            attention_mask=combine_masks(inputs, padding_mask, attention_mask),
            training=training,
        )

    def compute_output_shape(self, inputs_shape):
        return inputs_shape


def kernel_size(*layers):
    """The number of entries in the kernels of built dense layers."""
    return sum(math.prod(layer.kernel.shape) for layer in layers)


def split_keras_mask(inputs, padding_mask):
    """Separates a tensor from the Keras mask that it carries.

    The attention layers of Keras would also mask the padded queries if they
    found the mask, and a query without a key is NaN on some backends.

    Args:
        inputs: tensor, with or without a Keras mask.
        padding_mask: optional tensor that takes precedence over that mask.

    Returns:
        A tuple `(inputs, padding_mask)`; the first without a mask.
    """
    mask = get_keras_mask(inputs)
    if mask is None:
        return inputs, padding_mask
    unmasked = ops.squeeze(ops.expand_dims(inputs, 0), 0)
    return unmasked, mask if padding_mask is None else padding_mask


def combine_masks(inputs, padding_mask, attention_mask):
    """Which keys each query may attend to.

    A row of padding alone may attend everywhere: its outputs mean nothing, but
    they have to be finite.

    Args:
        inputs: tensor of shape `(batch_size, n, hidden_dim)`.
        padding_mask: optional tensor of shape `(batch_size, n)`.
        attention_mask: optional tensor of shape `(batch_size, n, n)`; its
            batch size may be 1.

    Returns:
        `None`, or a bool tensor of shape `(batch_size, 1, n)` or
        `(batch_size, n, n)`.

    Raises:
        ValueError: if a mask has another shape.
    """
    batch_size, length = inputs.shape[:2]
    if attention_mask is not None:
        shared = attention_mask.shape[0] == 1
        validate_mask_shape(
            "attention_mask",
            attention_mask,
            (1 if shared else batch_size, length, length),
        )
        attention_mask = ops.cast(attention_mask, "bool")
    if padding_mask is None:
        return attention_mask
    validate_mask_shape("padding_mask", padding_mask, (batch_size, length))
    padding_mask = ops.cast(padding_mask, "bool")
    has_real_token = ops.any(padding_mask, axis=-1, keepdims=True)
    keys = ops.logical_or(padding_mask, ops.logical_not(has_real_token))
    keys = ops.expand_dims(keys, 1)
    if attention_mask is None:
        return keys
    return ops.logical_and(keys, attention_mask)
