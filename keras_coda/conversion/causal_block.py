"""The decoder layers of language models as blocks that can be routed."""

from keras import ops

from keras_coda.conversion._keras_hub_internals import is_served_by_vllm
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import find_part
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers.attend import attend_heads
from keras_coda.layers.conditional_transformer_block import ATTENTIONS
from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Rows
from keras_coda.ops.routing import routed_length
from keras_coda.validation import validate_choice

# The first token and the last one.
NUM_PINNED = 2


def dense_early(num_blocks):
    """Reduction factors of a language model: a first third is dense.

    In early blocks a token of the prompt is what later ones look for, and no
    router can tell yet which of them will be.
    """
    num_dense = num_blocks // 3
    return [1] * num_dense + [4] * (num_blocks - num_dense)


class CausalBlock(EncoderBlock):
    """Grouped heads at rotary positions.

    A family sets the attributes that its layers have, and overrides `query` and
    `key` where heads are normalised before they are turned.

    Attributes:
        rotary: the layer that turns heads by the angles of their positions.
        window: how many tokens a token attends to, itself included, or `None`
            for all before it.
        soft_cap: beyond which no score gets, or `None`.
        weights_dropout, heads_dropout: of the attention weights, and of what is
            summed up by them, or `None`.
    """

    takes_prefix = True

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        attention = self.attention
        self.query_dense = find_part(attention, "query")
        self.key_dense = find_part(attention, "key")
        self.value_dense = find_part(attention, "value")
        self.output_dense = find_part(attention, "attention_output")
        self.rotary = None
        self.window = None
        self.soft_cap = None
        self.weights_dropout = None
        self.heads_dropout = None

    def query(self, rows):
        """Heads of rows, before they are turned."""
        return self.query_dense(rows)

    def key(self, rows):
        return self.key_dense(rows)

    def keys_and_values(self, context, positions):
        """What is attended to, and what a cache holds.

        Args:
            context: tensor of shape `(batch_size, m, hidden_dim)`.
            positions: int tensor of shape `(batch_size or 1, m)`.

        Returns:
            A tuple of two tensors of shape `(batch_size, m, num_heads,
            head_dim)`.
        """
        key = self.rotary(self.key(context), positions=positions)
        return key, self.value_dense(context)

    def attend(self, routed, training=None):
        if is_served_by_vllm():
            raise ValueError(
                "vLLM keeps keys and values in pages of its own, which routing "
                "does not write. Serve the dense model with vLLM, or the "
                "converted one with `generate`."
            )
        key, value = self.keys_and_values(
            routed.context, routed.context_positions
        )
        if routed.shared is not None:
            routed.shared.append((key, value))
        mask = routed.mask
        if self.window is not None:
            mask = ops.logical_and(mask, self.is_near(routed.distances))
        return self.attend_to(
            routed.queries, routed.positions, key, value, mask, training
        )

    def attend_to(
        self, queries, positions, key, value, mask=None, training=None
    ):
        """Attention of rows to keys and values.

        Args:
            queries: tensor of shape `(batch_size, k, hidden_dim)`.
            positions: int tensor of shape `(batch_size or 1, k)`.
            key, value: see `keys_and_values`.
            mask: bool tensor that broadcasts to `(batch_size, k, m)`.
            training: bool, whether dropout is active.
        """
        attended = attend_heads(
            self.rotary(self.query(queries), positions=positions),
            key,
            value,
            mask=mask,
            soft_cap=self.soft_cap,
            dropout=self.weights_dropout,
            training=training,
            prefix=self.prefix,
        )
        if self.heads_dropout is not None:
            attended = self.heads_dropout(attended, training=training)
        return self.output_dense(attended)

    def is_near(self, distances):
        """Whether a token of the context is in the window of a query.

        Args:
            distances: int tensor, position of the first less the second.
        """
        return distances > -self.window

    def attention_kernels(self):
        num_heads, head_dim, _ = self.output_dense.kernel.shape
        return {
            "rows": (self.query_dense, self.output_dense),
            "context": (self.key_dense, self.value_dense),
            "num_heads": num_heads,
            "head_dim": head_dim,
        }


class CausalConditionalBlock(ConditionalTransformerBlock):
    """Routes the tokens of a prompt, and computes all that follow it.

    A row routes `ceil(m / reduction_factor)` of its m real tokens in the
    prompt, however many there are in the other rows or of padding: what is
    computed of a row depends on no other, and on no padding.

    Attributes:
        prompt_length: int. How many positions, from the first on, are the
            prompt; `None`, the default, for all of them.
    """

    prompt_length = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.router.num_pinned = NUM_PINNED

    # What follows a prompt is always computed.
    is_left_out = False

    @property
    def attention(self):
        return "k_to_all"

    @attention.setter
    def attention(self, value):
        if validate_choice("attention", value, ATTENTIONS) != self.attention:
            raise ValueError(
                "Language models have `attention='k_to_all'` alone: what is "
                "generated reads the keys of all tokens of the prompt, and "
                "they are a small part of the work. Received: "
                f"attention={value!r}"
            )

    def choose(self, hidden, padding_mask=None, pinned=None):
        if self.reduction_factor == 1:
            return super().choose(hidden, padding_mask, pinned)
        if self.prompt_length == 0:
            return BlockRouting(self.router.ones(hidden), Rows())
        shape = ops.shape(hidden)[:2]
        mask = ops.ones(shape, "bool")
        if padding_mask is not None:
            mask = ops.cast(padding_mask, "bool")
        pinned = self.pinned_tokens(hidden, mask, pinned)
        if self.prompt_length is None:
            weights, indices = self._choose(hidden, mask, pinned)
            return BlockRouting(weights, Rows(indices))
        batch_size, length = shape
        prompt = (x[:, : self.prompt_length] for x in (hidden, mask, pinned))
        weights, indices = self._choose(*prompt)
        rest = ops.arange(length, dtype="int32")[self.prompt_length :]
        rest = ops.broadcast_to(rest, (batch_size, ops.shape(rest)[0]))
        return BlockRouting(
            ops.concatenate([weights, ops.ones_like(rest, "float32")], axis=1),
            Rows(ops.concatenate([indices, rest], axis=1)),
        )

    def _choose(self, hidden, mask, pinned):
        num_real = ops.sum(ops.cast(mask, "int32"), axis=-1)
        num_routed = routed_length(num_real, self.reduction_factor)
        return self.router(
            hidden, mask=mask, pinned=pinned, num_routed=num_routed
        )

    def pinned_tokens(self, inputs, padding_mask=None, pinned=None):
        """Also all behind the prompt, and where all prompts end."""
        chosen = super().pinned_tokens(inputs, padding_mask, pinned)
        if self.prompt_length is None:
            return chosen
        positions = ops.arange(ops.shape(inputs)[1], dtype="int32")
        return ops.logical_or(chosen, positions >= self.prompt_length - 1)

    def num_rows(self, length, reduction_factor):
        if self.prompt_length is None:
            return self.router.routed_length(length, reduction_factor)
        prompt = min(self.prompt_length, length)
        rest = length - prompt
        if prompt == 0:
            return rest
        return rest + self.router.routed_length(prompt, reduction_factor)

    def prefill(self, inputs, padding_mask, pinned):
        """Computes a prompt.

        Returns:
            A tuple of the outputs and a tensor of shape `(batch_size, 2, n,
            num_heads, head_dim)`, the keys and values of all tokens.
        """
        kept, prompt_length = [], self.prompt_length
        self.prompt_length = None
        try:
            outputs, _ = self.route(
                inputs, padding_mask=padding_mask, pinned=pinned, shared=kept
            )
        finally:
            self.prompt_length = prompt_length
        return outputs, ops.stack(kept[0], axis=1)

    def keys_and_values(self, inputs):
        """The second of what `prefill` returns, alone."""
        hidden = self.block.attention_input(inputs)
        positions = Rows().positions(hidden)
        pair = self.block.keys_and_values(hidden, positions)
        return ops.stack(pair, axis=1)

    def step(self, inputs, cache, index, position, mask):
        """Computes one token of each row, which attends to a cache.

        Args:
            inputs: tensor of shape `(batch_size, 1, hidden_dim)`.
            cache: tensor of shape `(batch_size, 2, m, num_heads, head_dim)`,
                keys and values of tokens.
            index: int tensor, the token's place in the cache.
            position: int tensor, its position behind the first one's.
            mask: bool tensor of shape `(batch_size, m)`, false at padding.

        Returns:
            A tuple of the outputs and the cache with the token in it.
        """
        block = self.block
        hidden = block.attention_input(inputs)
        position = ops.reshape(position, (1, 1))
        new = ops.stack(block.keys_and_values(hidden, position), axis=1)
        cache = ops.slice_update(cache, (0, 0, index, 0, 0), new)
        distances = ops.arange(ops.shape(cache)[2], dtype="int32") - index
        mask = ops.logical_and(mask, distances <= 0)
        if block.window is not None:
            mask = ops.logical_and(mask, block.is_near(distances))
        attended = block.attend_to(
            hidden,
            position,
            cache[:, 0],
            cache[:, 1],
            ops.expand_dims(mask, 1),
        )
        update = block.after_attention(inputs, attended)
        return self.adapted(inputs, hidden) + update, cache


def first_and_last(inputs):
    """Pins BOS, which many heads attend to, and the token that is read."""
    is_real = ops.cast(inputs["padding_mask"], "int32")
    # Differences to the neighbours, of which none are real outside.
    before = ops.pad(is_real, [[0, 0], [1, 0]])[:, :-1]
    after = ops.pad(is_real, [[0, 0], [0, 1]])[:, 1:]
    return ops.logical_and(is_real > 0, (before + after) < 2)
