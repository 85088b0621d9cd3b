import keras
from keras import ops

from keras_coda.layers.dense_block import DenseBlock
from keras_coda.layers.dense_block import combine_masks
from keras_coda.layers.dense_block import split_keras_mask
from keras_coda.layers.parallel_adapter import ParallelAdapter
from keras_coda.layers.partly_frozen import PartlyFrozen
from keras_coda.layers.token_router import TokenRouter
from keras_coda.layers.validation import validate_choice
from keras_coda.ops.routing import add_rows
from keras_coda.ops.routing import gather_pairs
from keras_coda.ops.routing import gather_rows

ATTENTIONS = ("k_to_all", "k_to_k")


@keras.saving.register_keras_serializable(package="keras_coda")
class ConditionalTransformerBlock(PartlyFrozen, keras.layers.Layer):
    """Sends only some of the tokens through a frozen Transformer block.

    A router picks k = ceil(n / reduction_factor) tokens and weighs them. The
    wrapped block updates those tokens alone, a small adapter updates all:

    `outputs = inputs + adapter(h) + scatter(weights * update(routed rows))`

    where h is what the block's attention reads. With `reduction_factor=1` and
    a fresh adapter the outputs are those of the wrapped block.

    With `shortcut_dim` the tokens that are left out get an estimate of the
    update that they miss, a low-rank linear function of h:
    `scatter(weights * update) + (1 - weights) * shortcut(h)`. It adds nothing
    where a token is routed with weight 1, so the identity above holds for any
    shortcut.

    Padding, from `padding_mask` or the Keras mask, is not routed before a real
    token, is not attended to and cannot change a real token's output.

    Args:
        block: a `keras_coda.layers.DenseBlock`, for example a
            `keras_coda.layers.TransformerBlock`, that is built or not.
        reduction_factor: float >= 1. Ratio of tokens to routed tokens.
            Defaults to `4`. It may be changed later; models compiled before
            then have to be compiled again
            (`keras_coda.set_reduction_factor` does both).
        adapter_dim: int >= 1. Width of the adapter. Defaults to `64`.
        attention: `"k_to_all"`, the routed tokens attend to all tokens
            (better), or `"k_to_k"`, to each other (faster). Defaults to
            `"k_to_all"`.
        router: `"exact"`, `"coordinate_descent"`, `"sigmoid"` or `"first_k"`,
            see `keras_coda.layers.TokenRouter`. Defaults to `"exact"`.
        epsilon: float > 0. Softness of the routing, in units of the router's
            scores. Defaults to `0.03`.
        num_prefix_tokens: int >= 0. Leading tokens that are always routed.
            Defaults to `0`.
        adapter_activation: a Keras activation. Defaults to `"relu"`.
        adapter_scale: float. Factor on the adapter's output. Defaults to
            `1.0`.
        shortcut_dim: optional int >= 1. Rank of the shortcut of the tokens
            that are not routed, which `keras_coda.training.calibrate` fits.
            Defaults to `None`, no shortcut, as in the paper.
        freeze_block: bool. Whether only the adapter, the router and the
            block's layer normalisations are trainable. Defaults to `True`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch_size, n, hidden_dim)`.
        padding_mask: optional bool tensor of shape `(batch_size, n)`, false at
            padding. Defaults to the Keras mask.
        attention_mask: optional bool tensor of shape `(batch_size, n, n)`, or
            `(1, n, n)` for all batch elements, true where a query (axis 1) may
            attend to a key (axis 2).
        training: bool, whether dropout is active.

    Returns:
        Tensor of shape `(batch_size, n, hidden_dim)`.

    Raises:
        TypeError: if `block` is not a `DenseBlock`.
        ValueError: if another argument is out of range or unknown, or if a
            mask has the wrong shape.

    Example:

    >>> block = keras_coda.layers.TransformerBlock(4, intermediate_dim=64)
    >>> layer = keras_coda.layers.ConditionalTransformerBlock(
    ...     block, reduction_factor=4, adapter_dim=8
    ... )
    >>> print(tuple(layer(np.ones((2, 12, 32))).shape))
    (2, 12, 32)

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), eq. 4 to 8. Eq. 6
        normalises the normalised rows again; this layer normalises the raw
        residual instead, which makes `reduction_factor=1` the pretrained block
        exactly. The shortcut is not the paper's; linear maps in the place of
        Transformer blocks are those of
        [Din et al., 2023](https://arxiv.org/abs/2303.09435).
    """

    def __init__(
        self,
        block,
        reduction_factor=4,
        adapter_dim=64,
        attention="k_to_all",
        router="exact",
        epsilon=0.03,
        num_prefix_tokens=0,
        adapter_activation="relu",
        adapter_scale=1.0,
        shortcut_dim=None,
        freeze_block=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(block, DenseBlock):
            raise TypeError(
                "`block` must be a `keras_coda.layers.DenseBlock`, such as "
                "`keras_coda.layers.TransformerBlock`; subclass `DenseBlock` "
                "for a block of your own, or convert a whole KerasHub model "
                f"with `keras_coda.coda_wrap`. Received: block={block!r}"
            )
        self.block = block
        self.attention = validate_choice("attention", attention, ATTENTIONS)
        self.router = TokenRouter(
            reduction_factor=reduction_factor,
            method=router,
            epsilon=epsilon,
            num_prefix_tokens=num_prefix_tokens,
            name="router",
        )
        self.adapter = ParallelAdapter(
            adapter_dim=adapter_dim,
            activation=adapter_activation,
            scale=adapter_scale,
            dtype=self.dtype_policy,
            name="adapter",
        )
        self.shortcut = None
        if shortcut_dim is not None:
            self.shortcut = ParallelAdapter(
                adapter_dim=shortcut_dim,
                activation="linear",
                dtype=self.dtype_policy,
                name="shortcut",
            )
        self.freeze_block = freeze_block
        self.supports_masking = True

    def build(self, inputs_shape):
        if not self.block.built:
            self.block.build(inputs_shape)
        self.router.build(inputs_shape)
        self.adapter.build(inputs_shape)
        if self.shortcut is not None:
            self.shortcut.build(inputs_shape)
        if self.trainable:
            self.freeze()

    def trained_layers(self):
        if not self.block.built:
            return []
        block = self.block.norms if self.freeze_block else [self.block]
        shortcut = [] if self.shortcut is None else [self.shortcut]
        return [*block, self.router, self.adapter, *shortcut]

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens."""
        return self.router.reduction_factor

    @reduction_factor.setter
    def reduction_factor(self, value):
        self.router.reduction_factor = value

    def call(
        self, inputs, padding_mask=None, attention_mask=None, training=None
    ):
        return self.route(
            inputs,
            padding_mask=padding_mask,
            attention_mask=attention_mask,
            training=training,
        )

    def route(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        position_bias=None,
        training=None,
    ):
        """The block's computation; see the class for the arguments.

        `position_bias` is for blocks whose `residual_update` takes one: a
        float tensor of shape `(1 or batch_size, num_heads, n, n)`.
        """
        inputs, padding_mask = split_keras_mask(inputs, padding_mask)
        hidden = self.block.attention_input(inputs)
        weights, indices = self.router(hidden, mask=padding_mask)

        attention_mask = combine_masks(inputs, padding_mask, attention_mask)
        if indices is None:
            rows, queries, context = inputs, hidden, hidden
        else:
            rows = gather_rows(inputs, indices)
            # Post-LN blocks attend to the inputs themselves.
            queries = rows if hidden is inputs else gather_rows(hidden, indices)
            to_all = self.attention == "k_to_all"
            context = hidden if to_all else queries
            key_indices = None if to_all else indices
            if attention_mask is not None:
                attention_mask = gather_pairs(
                    attention_mask, indices, key_indices
                )
            if position_bias is not None:
                position_bias = self.gather_position_bias(
                    position_bias, indices, key_indices
                )
        bias = {} if position_bias is None else {"position_bias": position_bias}
        update = self.block.residual_update(
            rows,
            queries,
            context,
            attention_mask=attention_mask,
            training=training,
            **bias,
        )
        # (batch_size, k, hidden_dim), weighted by the router: eq. 8.
        weights = ops.cast(ops.expand_dims(weights, -1), update.dtype)
        outputs = inputs + self.adapter(hidden)
        if self.shortcut is None:
            update = weights * update
        elif indices is None:
            update = weights * update + (1 - weights) * self.shortcut(hidden)
        else:
            estimate = self.shortcut(hidden)
            outputs = outputs + estimate
            update = weights * (update - gather_rows(estimate, indices))
        if indices is None:
            return outputs + update
        return add_rows(outputs, update, indices)

    def gather_position_bias(self, position_bias, indices, key_indices=None):
        """The position bias of routed queries, and keys if they are too."""
        return gather_pairs(position_bias, indices, key_indices)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        config = super().get_config()
        adapter = self.adapter.get_config()
        config.update(
            {
                "block": keras.layers.serialize(self.block),
                "reduction_factor": self.reduction_factor,
                "adapter_dim": self.adapter.adapter_dim,
                "attention": self.attention,
                "router": self.router.method,
                "epsilon": self.router.epsilon,
                "num_prefix_tokens": self.router.num_prefix_tokens,
                "adapter_activation": adapter["activation"],
                "adapter_scale": self.adapter.scale,
                "shortcut_dim": self.shortcut and self.shortcut.adapter_dim,
                "freeze_block": self.freeze_block,
            }
        )
        return config

    @classmethod
    def from_config(cls, config):
        block = keras.layers.deserialize(config["block"])
        return cls(**{**config, "block": block})
