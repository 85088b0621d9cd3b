"""What the library computes, in plain NumPy float64, one step at a time."""

import math

import keras
import numpy as np


def soft_top_k(scores, k, epsilon=0.03, mask=None):
    """Optimum of eq. 12: bisection on `a` in `min(1, exp((s + a) / eps))`.

    `k` is a number or an array of the batch shape.
    """
    scores = np.asarray(scores, "float64")
    if mask is None:
        mask = np.ones(scores.shape)
    mask = np.broadcast_to(np.asarray(mask, bool), scores.shape)
    budgets = np.broadcast_to(np.asarray(k), scores.shape[:-1])
    weights = np.zeros(scores.shape)
    for row in np.ndindex(scores.shape[:-1]):
        weights[row][mask[row]] = _soft_top_k_row(
            scores[row][mask[row]], budgets[row], epsilon
        )
    return weights


def _soft_top_k_row(scores, k, epsilon):
    k = min(int(k), len(scores))
    if k == 0:
        return np.zeros(len(scores))
    logits = scores / epsilon
    # The sum is at most k at the one end and n at the other.
    low = math.log(k / len(scores)) - logits.max()
    high = -logits.min()
    for _ in range(200):
        middle = (low + high) / 2
        if np.exp(np.minimum(logits + middle, 0.0)).sum() < k:
            low = middle
        else:
            high = middle
    return np.exp(np.minimum(logits + high, 0.0))


def coordinate_descent(
    scores,
    k,
    epsilon=0.03,
    num_iterations=20,
    epsilon_init=4.0,
    epsilon_decay=0.7,
):
    """Eq. 13, transcribed for rows of scores without padding."""
    scores = np.asarray(scores, "float64")
    b = np.zeros(scores.shape)
    epsilon_t = epsilon_init
    for _ in range(num_iterations):
        exponents = (scores + b) / epsilon_t
        largest = exponents.max(-1, keepdims=True)
        logsumexp = largest + np.log(
            np.exp(exponents - largest).sum(-1, keepdims=True)
        )
        a = epsilon_t * (np.log(k) - logsumexp)
        b = np.minimum(-scores - a, 0.0)
        epsilon_t = max(epsilon_decay * epsilon_t, epsilon)
    return np.exp((scores + a + b) / epsilon)


def finite_differences(function, inputs, step=1e-6):
    """The gradient of a scalar function of one array."""
    inputs = np.asarray(inputs, "float64")
    gradient = np.zeros(inputs.shape)
    for index in np.ndindex(inputs.shape):
        above, below = inputs.copy(), inputs.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient


def transformer_block(block, inputs, padding_mask=None, attention_mask=None):
    """A dense `TransformerBlock` on a batch."""
    batch_size, n, _ = inputs.shape
    masks = _pairwise_masks(batch_size, n, padding_mask, attention_mask)
    outputs = []
    for x, mask in zip(np.asarray(inputs, "float64"), masks):
        hidden = _norm(block.attention_norm, x) if _pre_ln(block) else x
        outputs.append(x + _residual_update(block, x, hidden, hidden, mask))
    return np.stack(outputs)


def conditional_block(layer, inputs, padding_mask=None, attention_mask=None):
    """A `ConditionalTransformerBlock` with the `"exact"` router, eq. 4 to 8.

    Prefix tokens must be real.
    """
    block, router, adapter = layer.block, layer.router, layer.adapter
    batch_size, n, _ = inputs.shape
    masks = _pairwise_masks(batch_size, n, padding_mask, attention_mask)
    if padding_mask is None:
        padding_mask = np.ones((batch_size, n))
    k = math.ceil(n / layer.reduction_factor)
    outputs = []
    for x, real, mask in zip(
        np.asarray(inputs, "float64"), np.asarray(padding_mask, bool), masks
    ):
        hidden = _norm(block.attention_norm, x) if _pre_ln(block) else x
        scores = (hidden @ _weight(router.kernel))[:, 0]
        best, weights = _route(scores, real, k, router)
        if layer.attention == "k_to_all":
            context, mask = hidden, mask[best]
        else:
            context, mask = hidden[best], mask[best][:, best]
        update = _residual_update(block, x[best], hidden[best], context, mask)
        output = x + _adapter(adapter, hidden)
        output[best] += weights[:, None] * update
        if layer.shortcut is not None:
            missed = np.ones(n)
            missed[best] -= weights
            output += missed[:, None] * _adapter(layer.shortcut, hidden)
        outputs.append(output)
    return np.stack(outputs)


def adapted_encoder_layer(layer, inputs, padding_mask=None):
    """KerasHub's `TransformerEncoder`, with adapters inside, on a batch.

    `layer` is the `ConditionalTransformerBlock` that it became.
    """
    block = layer.block
    batch_size, n, _ = inputs.shape
    masks = _pairwise_masks(batch_size, n, padding_mask, None)
    outputs = []
    for x, mask in zip(np.asarray(inputs, "float64"), masks):
        hidden = _norm(block.attention_norm, x) if block.pre_norm else x
        attended = _prefixed_attention(block, hidden, mask)
        attended = _behind(block.attention_adapter, attended)
        hidden = x + attended
        if not block.pre_norm:
            hidden = _norm(block.attention_norm, hidden)
        output = hidden
        if block.pre_norm:
            output = _norm(block.feedforward_norm, hidden)
        output = np.maximum(_dense(block.intermediate, output), 0.0)
        output = _dense(block.output_projection, output)
        output = hidden + _behind(block.feedforward_adapter, output)
        if not block.pre_norm:
            output = _norm(block.feedforward_norm, output)
        outputs.append(output)
    return np.stack(outputs)


def _prefixed_attention(block, inputs, mask):
    """Multi-head self-attention to a prefix, if there is one, and to all."""
    attention = block.attention
    query, key, value = (
        np.einsum("nd,dhe->hne", inputs, _weight(dense.kernel))
        + _weight(dense.bias)[:, None]
        for dense in (
            attention.query_dense,
            attention.key_dense,
            attention.value_dense,
        )
    )
    if block.prefix is not None:
        key, value = (
            np.concatenate([np.swapaxes(_weight(own), 0, 1), heads], axis=1)
            for own, heads in (
                (block.prefix.key, key),
                (block.prefix.value, value),
            )
        )
        prefix_length = block.prefix.prefix_length
        mask = np.pad(mask, [(0, 0), (prefix_length, 0)], constant_values=True)
    logits = query @ np.swapaxes(key, 1, 2) / math.sqrt(query.shape[-1])
    logits = np.where(mask, logits, -np.inf)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    outputs = np.einsum(
        "hne,hed->nd", shares @ value, _weight(attention.output_dense.kernel)
    )
    return outputs + _weight(attention.output_dense.bias)


def _behind(adapter, inputs):
    return inputs if adapter is None else inputs + _adapter(adapter, inputs)


def _dense(dense, inputs):
    return inputs @ _weight(dense.kernel) + _weight(dense.bias)


def _route(scores, real, k, router):
    """Positions and weights of the k tokens of a row, the prefix first."""
    prefix = np.arange(min(router.num_prefix_tokens, len(scores)))
    num_prefix = len(prefix)
    k = max(k, num_prefix)
    if k == len(scores):
        return np.arange(k), np.ones(k)
    scores, real = scores[num_prefix:], real[num_prefix:]
    # Real tokens first, and among them the highest scores.
    best = np.lexsort((-scores, ~real))[: k - num_prefix]
    weights = soft_top_k(scores, k - num_prefix, router.epsilon, real)
    return (
        np.concatenate([prefix, num_prefix + best]),
        np.concatenate([np.ones(num_prefix), weights[best]]),
    )


def _pairwise_masks(batch_size, n, padding_mask, attention_mask):
    """Which keys each query may attend to, of shape (batch_size, n, n)."""
    masks = np.ones((batch_size, n, n), bool)
    if padding_mask is not None:
        for row, real in enumerate(np.asarray(padding_mask, bool)):
            if real.any():
                masks[row] &= real
    if attention_mask is not None:
        masks &= np.asarray(attention_mask, bool)
    return masks


def _residual_update(block, rows, queries, context, mask):
    attended = _attention(block, queries, context, mask)
    if _pre_ln(block):
        hidden = _norm(block.feedforward_norm, rows + attended)
        return attended + _feedforward(block, hidden)
    hidden = _norm(block.attention_norm, rows + attended)
    outputs = hidden + _feedforward(block, hidden)
    return _norm(block.feedforward_norm, outputs) - rows


def _attention(block, queries, context, mask):
    # (hidden_dim, num_heads, head_dim), the last the other way round.
    query_kernel, key_kernel, value_kernel, output_kernel = (
        _weight(weight) for weight in block.attention.weights
    )
    head_dim = query_kernel.shape[-1]
    group_size = block.num_heads // block.num_key_value_heads
    outputs = 0.0
    for head in range(block.num_heads):
        group = head // group_size
        query = queries @ query_kernel[:, head]
        key = context @ key_kernel[:, group]
        value = context @ value_kernel[:, group]
        logits = query @ key.T / math.sqrt(head_dim)
        logits = np.where(mask, logits, -np.inf)
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        outputs = outputs + shares @ value @ output_kernel[head]
    return outputs


def _feedforward(block, inputs):
    assert keras.activations.serialize(block.activation) == "gelu"
    hidden = _gelu(inputs @ _weight(block.intermediate.kernel))
    if block.gate is not None:
        hidden = hidden * (inputs @ _weight(block.gate.kernel))
    return hidden @ _weight(block.output_projection.kernel)


def _gelu(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def _adapter(adapter, inputs):
    hidden = inputs @ _weight(adapter.down.kernel) + _weight(adapter.down.bias)
    if adapter.activation is not keras.activations.linear:
        hidden = np.maximum(hidden, 0.0)
    outputs = hidden @ _weight(adapter.up.kernel) + _weight(adapter.up.bias)
    return adapter.scale * outputs


def _norm(norm, x):
    if isinstance(norm, keras.layers.RMSNormalization):
        mean_square = (x**2).mean(-1, keepdims=True)
        return x / np.sqrt(mean_square + norm.epsilon) * _weight(norm.scale)
    centered = x - x.mean(-1, keepdims=True)
    variance = (centered**2).mean(-1, keepdims=True)
    normalized = centered / np.sqrt(variance + norm.epsilon)
    return normalized * _weight(norm.gamma) + _weight(norm.beta)


def _pre_ln(block):
    return block.normalize_first


def _weight(variable):
    return keras.ops.convert_to_numpy(variable).astype("float64")
