from collections.abc import Callable
from typing import NamedTuple

import keras
from keras import ops

from keras_coda._keras_internals import get_keras_mask
from keras_coda.layers.routed import Routed
from keras_coda.validation import validate_mask_shape


class BlockKernels(NamedTuple):
    """The kernels of a block, by what they are multiplied with.

    Attributes:
        rows: dense layers of attention that each routed token goes through,
            such as the query and the output projection.
        context: dense layers that each token attended to goes through, such as
            the key and the value projection.
        feedforward: dense layers of the feedforward network.
        num_heads: int. Number of query heads.
        head_dim: int. Width of a head.
        absorbs: bool. Whether few queries may absorb the projections of the
            context, see `attend_absorbed`. Defaults to `False`.
        num_positions: optional function from a sequence length to the number
            of relative positions that have a key and a query of their own, as
            in DeBERTa. They are projected and multiplied like tokens.

    Example:

    >>> block = keras_coda.layers.TransformerBlock(4, intermediate_dim=64)
    >>> block.build((None, None, 32))
    >>> kernels = block.kernels()
    >>> [layer.name for layer in kernels.feedforward], kernels.head_dim
    (['intermediate', 'output_projection', 'gate'], 8)
    """

    rows: tuple
    context: tuple
    feedforward: tuple
    num_heads: int
    head_dim: int
    absorbs: bool = False
    num_positions: Callable | None = None


class DenseBlock(keras.layers.Layer):
    """A Transformer block, cut in the two steps that routing needs.

    Subclass it to make a Transformer block of your own one that
    `keras_coda.layers.ConditionalTransformerBlock` can wrap:

    - `attention_input(inputs)` is what attention reads: the normalised inputs
      of a pre-LN block, the inputs themselves of a post-LN block. Router and
      adapter read it too.
    - `residual_update(routed)` is what the block adds to some of its rows,
      `block(rows) - rows`, when those rows attend to a context. `routed` is a
      `keras_coda.layers.Routed`: rows, queries, context, mask and positions.
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
    ...     def residual_update(self, routed, training=None):
    ...         attended = self.attention(
    ...             routed.queries, routed.context, attention_mask=routed.mask
    ...         )
    ...         return self.norm(routed.rows + attended) - routed.rows
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

    def residual_update(self, routed, training=None):
        """What the block adds to its rows.

        Args:
            routed: a `keras_coda.layers.Routed`.
            training: bool, whether dropout is active.

        Returns:
            Tensor of the shape of `routed.rows`.
        """
        raise NotImplementedError

    @property
    def norms(self):
        """The layer normalisations of the built block."""
        raise NotImplementedError

    @property
    def adapters(self):
        """The adapters that `insert_adapters` put into the block."""
        return []

    def insert_adapters(self, settings):
        """Puts adapters into the block, before it is called.

        Args:
            settings: the `BlockSettings` of the layer around the block, whose
                `adapter` is not `"parallel"`.
        """
        raise ValueError(
            f"{type(self).__name__} takes no adapters inside. Use "
            "`adapter='parallel'`, or convert a KerasHub model with "
            f"`keras_coda.coda_wrap`. Received: adapter={settings.adapter!r}"
        )

    def kernels(self):
        """The `BlockKernels` of the built block.

        Only `keras_coda.analysis.flops` asks for it.
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it computes. Define "
            "`kernels`, which returns a `keras_coda.layers.BlockKernels`."
        )

    def call(
        self, inputs, padding_mask=None, attention_mask=None, training=None
    ):
        rows, padding_mask = split_keras_mask(inputs, padding_mask)
        queries = self.attention_input(rows)
        mask = combine_masks(inputs, padding_mask, attention_mask)
        routed = Routed(rows, queries, queries, mask)
        return rows + self.residual_update(routed, training=training)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape


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
