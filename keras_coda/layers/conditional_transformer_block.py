import dataclasses
import math

import keras
from keras import ops

from keras_coda.layers.block_settings import BlockSettings
from keras_coda.layers.block_settings import documents_settings
from keras_coda.layers.block_settings import takes_settings
from keras_coda.layers.dense_block import DenseBlock
from keras_coda.layers.dense_block import combine_masks
from keras_coda.layers.dense_block import split_keras_mask
from keras_coda.layers.parallel_adapter import ParallelAdapter
from keras_coda.layers.partly_frozen import PartlyFrozen
from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Routed
from keras_coda.layers.routed import Rows
from keras_coda.layers.routing_scope import BlockRecord
from keras_coda.layers.routing_scope import current_scope
from keras_coda.layers.token_router import TokenRouter
from keras_coda.ops.routing import gather_pairs
from keras_coda.validation import validate_choice

ATTENTIONS = ("k_to_all", "k_to_k")


@documents_settings(BlockSettings)
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
        {settings}
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
        pinned: optional bool tensor of shape `(batch_size, n)`, true at tokens
            that are always routed, besides the first `num_prefix_tokens`.
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

    # Which stack of blocks it is in, for models that consist of several.
    stack_name = None

    @takes_settings(BlockSettings)
    def __init__(self, block, settings, freeze_block=True, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(block, DenseBlock):
            raise TypeError(
                "`block` must be a `keras_coda.layers.DenseBlock`, such as "
                "`keras_coda.layers.TransformerBlock`; subclass `DenseBlock` "
                "for a block of your own, or convert a whole KerasHub model "
                f"with `keras_coda.coda_wrap`. Received: block={block!r}"
            )
        is_dense = settings.adapter != "parallel"
        if is_dense:
            block.insert_adapters(settings)
        self.block = block
        self.settings = settings
        self.attention = settings.attention
        self.router = TokenRouter(
            reduction_factor=settings.reduction_factor,
            # "first_k" has no weights.
            router="first_k" if is_dense else settings.router,
            epsilon=settings.epsilon,
            num_prefix_tokens=settings.num_prefix_tokens,
            name="router",
        )
        self.adapter = None
        if not is_dense:
            self.adapter = settings.make_adapter(
                dtype=self.dtype_policy, name="adapter"
            )
        self.shortcut = None
        if settings.shortcut_dim is not None:
            self.shortcut = ParallelAdapter(
                adapter_dim=settings.shortcut_dim,
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
        for adapter in self.adapters:
            adapter.build(inputs_shape)
        if self.shortcut is not None:
            self.shortcut.build(inputs_shape)
        if self.trainable:
            self.freeze()

    def trained_layers(self):
        if not self.block.built:
            return []
        block = self.block.norms if self.freeze_block else [self.block]
        shortcut = [] if self.shortcut is None else [self.shortcut]
        return [*block, self.router, *self.adapters, *shortcut]

    @property
    def adapters(self):
        """The adapter beside the block, or those inside it."""
        return self.block.adapters if self.adapter is None else [self.adapter]

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens."""
        return self.router.reduction_factor

    @reduction_factor.setter
    def reduction_factor(self, value):
        self.settings.validate_routing(reduction_factor=value)
        self.router.reduction_factor = value

    @property
    def is_left_out(self):
        """Whether nothing is computed, not even the adapter."""
        return self.reduction_factor == math.inf

    @property
    def attention(self):
        """`"k_to_all"` or `"k_to_k"`."""
        return self._attention

    @attention.setter
    def attention(self, value):
        self._attention = validate_choice("attention", value, ATTENTIONS)

    def call(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        pinned=None,
        training=None,
    ):
        outputs, _ = self.route(
            inputs,
            padding_mask=padding_mask,
            attention_mask=attention_mask,
            pinned=pinned,
            training=training,
        )
        return outputs

    def route(
        self,
        inputs,
        padding_mask=None,
        attention_mask=None,
        pinned=None,
        shared=None,
        routing=None,
        training=None,
    ):
        """The block's computation; see the class for the arguments.

        Args:
            shared: what the blocks of a stack share, for those whose
                `residual_update` reads `routed.shared`.
            routing: optional `BlockRouting`, such as `choose` returns, to use
                in the place of the router's.

        Returns:
            A tuple of the outputs and the `BlockRouting` that was used.
        """
        scope = current_scope()
        inputs, padding_mask = split_keras_mask(inputs, padding_mask)
        attention_mask = combine_masks(inputs, padding_mask, attention_mask)
        # A block may be more precise than what is around it.
        block_inputs = ops.cast(inputs, self.block.compute_dtype)
        hidden = self.block.attention_input(block_inputs)
        if scope is not None and id(self) in scope.known:
            outputs = scope.known[id(self)]
            scope.records[id(self)] = BlockRecord(
                inputs, hidden, padding_mask, pinned, None, outputs
            )
            return outputs, None
        if routing is None and scope is not None and scope.choose is not None:
            routing = scope.choose(self, hidden, padding_mask, pinned)
        if routing is None and self.is_left_out:
            return self._left_out(inputs, hidden, padding_mask, pinned)
        if routing is None:
            routing = self.choose(hidden, padding_mask, pinned)
        update = self.block.residual_update(
            self._routed(block_inputs, hidden, attention_mask, shared, routing),
            training=training,
        )
        outputs = self._add(inputs, hidden, update, routing)
        if scope is not None:
            scope.records[id(self)] = BlockRecord(
                inputs, hidden, padding_mask, pinned, routing, outputs
            )
        return outputs, routing

    def _left_out(self, inputs, hidden, padding_mask, pinned):
        """What `route` returns where not even the adapter runs."""
        batch_size = ops.shape(inputs)[0]
        routing = BlockRouting(
            ops.zeros((batch_size, 0), "float32"),
            Rows(ops.zeros((batch_size, 0), "int32")),
        )
        scope = current_scope()
        if scope is not None:
            scope.records[id(self)] = BlockRecord(
                inputs, hidden, padding_mask, pinned, routing, inputs
            )
        return inputs, routing

    def choose(self, hidden, padding_mask=None, pinned=None):
        """The router's `BlockRouting` of what attention reads."""
        weights, indices = self.router(hidden, mask=padding_mask, pinned=pinned)
        if self.router.routes_all(ops.shape(hidden)[1]):
            return BlockRouting(weights, Rows())
        return BlockRouting(weights, Rows(indices))

    def pinned_tokens(self, inputs, padding_mask=None, pinned=None):
        """Which tokens are always computed, a bool `(batch_size, n)`."""
        return self.router.pinned_tokens(inputs, padding_mask, pinned)

    def num_rows(self, length, reduction_factor):
        """How many of `length` tokens are computed at a reduction factor."""
        if reduction_factor == math.inf:
            return 0
        return self.router.routed_length(length, reduction_factor)

    def _routed(self, inputs, hidden, attention_mask, shared, routing):
        """What `routing` leaves of the block's inputs."""
        query_rows = routing.rows
        context_rows = Rows() if self.attention == "k_to_all" else query_rows
        rows = query_rows.gather(inputs)
        # Post-LN blocks attend to the inputs themselves.
        queries = rows if hidden is inputs else query_rows.gather(hidden)
        context = hidden if context_rows.are_all else queries
        if attention_mask is not None:
            attention_mask = gather_pairs(
                attention_mask, query_rows.indices, context_rows.indices
            )
        return Routed(
            rows,
            queries,
            context,
            attention_mask,
            query_rows,
            context_rows,
            shared,
        )

    def _add(self, inputs, hidden, update, routing):
        """The inputs, with what adapter, block and shortcut add: eq. 8."""
        weights, rows = routing
        update = ops.cast(update, inputs.dtype)
        # (batch_size, k, hidden_dim), weighted by the router.
        weights = ops.cast(ops.expand_dims(weights, -1), update.dtype)
        outputs = self.adapted(inputs, hidden)
        if self.shortcut is None:
            return rows.add(outputs, weights * update)
        estimate = self.shortcut(rows.gather(hidden))
        if rows.are_all:
            # Exactly the update where the weight is 1.
            return outputs + weights * update + (1 - weights) * estimate
        outputs = self.shortcut.add_to(outputs, hidden)
        return rows.add(outputs, weights * (update - estimate))

    def adapted(self, inputs, hidden):
        """The inputs, with what an adapter beside the block adds."""
        if self.adapter is None:
            return inputs
        return self.adapter.add_to(inputs, hidden)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        config = super().get_config()
        activation = keras.activations.get(self.settings.adapter_activation)
        config.update(
            {
                "block": keras.layers.serialize(self.block),
                **dataclasses.asdict(self.settings),
                "reduction_factor": self.reduction_factor,
                "attention": self.attention,
                "adapter_activation": keras.activations.serialize(activation),
                "freeze_block": self.freeze_block,
            }
        )
        return config

    @classmethod
    def from_config(cls, config):
        block = keras.layers.deserialize(config["block"])
        return cls(**{**config, "block": block})
