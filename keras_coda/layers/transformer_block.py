import keras

from keras_coda._keras_internals import sublayers
from keras_coda.layers.dense_block import BlockKernels
from keras_coda.layers.dense_block import DenseBlock
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_positive_integer


@keras.saving.register_keras_serializable(package="keras_coda")
class TransformerBlock(DenseBlock):
    """A dense Transformer encoder block in the paper's architecture.

    Self-attention with as many key and value heads as asked for (multi-head,
    grouped-query or multi-query), then a plain or gated feedforward network,
    each with a residual connection and a layer normalisation before
    (`normalize_first=True`) or after it. The projections have no biases.

    Padding, from `padding_mask` or the Keras mask, is not attended to. It is
    called as `keras_coda.layers.DenseBlock` is.

    Args:
        num_heads: int. Number of query heads; divides the hidden dimension
            unless `head_dim` is given.
        intermediate_dim: int. Width of the feedforward network.
        num_key_value_heads: optional int. Number of key and value heads, a
            divisor of `num_heads`. 1 is multi-query attention. Defaults to
            `num_heads`, multi-head attention.
        head_dim: optional int. Width of a head. Defaults to
            `hidden_dim // num_heads`.
        activation: a Keras activation of the feedforward network. Defaults to
            `"gelu"`.
        gated: bool. Whether a second projection multiplies the activation.
            Defaults to `True`.
        normalization: `"rms"` or `"layer"`. Defaults to `"rms"`.
        normalize_first: bool. Whether the block is pre-LN. Defaults to `True`.
        norm_epsilon: float. Added to the variance. Defaults to `1e-6`.
        dropout: float in [0, 1). Dropout rate of the attention weights and of
            both updates. Defaults to `0.0`.
        **kwargs: see `keras.layers.Layer`.

    Returns:
        Tensor of shape `(batch_size, n, hidden_dim)`.

    Raises:
        ValueError: if an argument is out of range, or if the heads do not
            divide.

    Example:

    >>> block = keras_coda.layers.TransformerBlock(
    ...     num_heads=4, intermediate_dim=64, num_key_value_heads=1
    ... )
    >>> print(tuple(block(np.ones((2, 5, 32))).shape))
    (2, 5, 32)

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), appendix B.
    """

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        num_key_value_heads=None,
        head_dim=None,
        activation="gelu",
        gated=True,
        normalization="rms",
        normalize_first=True,
        norm_epsilon=1e-6,
        dropout=0.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_heads = validate_positive_integer("num_heads", num_heads)
        self.intermediate_dim = validate_positive_integer(
            "intermediate_dim", intermediate_dim
        )
        if num_key_value_heads is None:
            num_key_value_heads = num_heads
        self.num_key_value_heads = validate_positive_integer(
            "num_key_value_heads", num_key_value_heads
        )
        if num_heads % num_key_value_heads:
            raise ValueError(
                "`num_key_value_heads` must divide `num_heads`. Received: "
                f"num_key_value_heads={num_key_value_heads}, "
                f"num_heads={num_heads}"
            )
        if head_dim is not None:
            validate_positive_integer("head_dim", head_dim)
        self.head_dim = head_dim
        self.activation = keras.activations.get(activation)
        self.gated = gated
        self.normalization = validate_choice(
            "normalization", normalization, ("rms", "layer")
        )
        self.normalize_first = normalize_first
        self.norm_epsilon = norm_epsilon
        self.dropout = dropout

    def build(self, inputs_shape):
        hidden_dim = inputs_shape[-1]
        if self.head_dim is None and hidden_dim % self.num_heads:
            raise ValueError(
                "`num_heads` must divide the hidden dimension unless "
                "`head_dim` is given. Received: "
                f"num_heads={self.num_heads}, hidden_dim={hidden_dim}"
            )
        self.attention_norm = self._norm("attention_norm", inputs_shape)
        self.attention = keras.layers.GroupQueryAttention(
            head_dim=self.head_dim or hidden_dim // self.num_heads,
            num_query_heads=self.num_heads,
            num_key_value_heads=self.num_key_value_heads,
            dropout=self.dropout,
            use_bias=False,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention.build(inputs_shape, inputs_shape)
        self.attention_dropout = self._dropout("attention_dropout")
        self.feedforward_norm = self._norm("feedforward_norm", inputs_shape)
        self.intermediate = self._dense(
            "intermediate", self.intermediate_dim, inputs_shape, self.activation
        )
        self.gate = None
        if self.gated:
            self.gate = self._dense("gate", self.intermediate_dim, inputs_shape)
        self.output_projection = self._dense(
            "output_projection",
            hidden_dim,
            (*inputs_shape[:-1], self.intermediate_dim),
        )
        self.feedforward_dropout = self._dropout("feedforward_dropout")

    def _norm(self, name, inputs_shape):
        norm_cls = (
            keras.layers.RMSNormalization
            if self.normalization == "rms"
            else keras.layers.LayerNormalization
        )
        norm = norm_cls(
            epsilon=self.norm_epsilon, dtype=self.dtype_policy, name=name
        )
        norm.build(inputs_shape)
        return norm

    def _dense(self, name, units, inputs_shape, activation=None):
        dense = keras.layers.Dense(
            units,
            activation=activation,
            use_bias=False,
            dtype=self.dtype_policy,
            name=name,
        )
        dense.build(inputs_shape)
        return dense

    def _dropout(self, name):
        return keras.layers.Dropout(
            self.dropout, dtype=self.dtype_policy, name=name
        )

    @property
    def norms(self):
        return [self.attention_norm, self.feedforward_norm]

    def attention_input(self, inputs):
        return self.attention_norm(inputs) if self.normalize_first else inputs

    def residual_update(self, routed, training=None):
        attended = self.attention(
            routed.queries,
            routed.context,
            attention_mask=routed.mask,
            training=training,
        )
        attended = self.attention_dropout(attended, training=training)
        if self.normalize_first:
            hidden = self.feedforward_norm(routed.rows + attended)
            return attended + self._feedforward(hidden, training)
        hidden = self.attention_norm(routed.rows + attended)
        outputs = hidden + self._feedforward(hidden, training)
        return self.feedforward_norm(outputs) - routed.rows

    def kernels(self):
        parts = {layer.name: layer for layer in sublayers(self.attention)}
        feedforward = [self.intermediate, self.output_projection]
        if self.gate is not None:
            feedforward.append(self.gate)
        return BlockKernels(
            rows=(parts["query"], parts["attention_output"]),
            context=(parts["key"], parts["value"]),
            feedforward=tuple(feedforward),
            num_heads=self.num_heads,
            head_dim=parts["query"].kernel.shape[-1],
        )

    def _feedforward(self, inputs, training):
        hidden = self.intermediate(inputs)
        if self.gate is not None:
            hidden = hidden * self.gate(inputs)
        outputs = self.output_projection(hidden)
        return self.feedforward_dropout(outputs, training=training)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "num_heads": self.num_heads,
                "intermediate_dim": self.intermediate_dim,
                "num_key_value_heads": self.num_key_value_heads,
                "head_dim": self.head_dim,
                "activation": keras.activations.serialize(self.activation),
                "gated": self.gated,
                "normalization": self.normalization,
                "normalize_first": self.normalize_first,
                "norm_epsilon": self.norm_epsilon,
                "dropout": self.dropout,
            }
        )
        return config
