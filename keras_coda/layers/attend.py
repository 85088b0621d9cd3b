import keras
from keras import ops

from keras_coda._keras_internals import sublayers
from keras_coda.backend_differences import fuses_attention
from keras_coda.layers.dense import call_dense
from keras_coda.ops.masking import mask_scores


def attend(
    attention,
    queries,
    context,
    attention_mask=None,
    training=None,
    prefix=None,
):
    """Calls a `keras.layers.MultiHeadAttention`, cheaper at inference.

    The layer itself computes and stores all scores if it has dropout, also at
    inference, where the dropout does nothing. A sixth of the time of a BERT
    block at n = 512 on PyTorch went there. And it projects all of the context,
    however few the queries; see `attend_absorbed`.

    Args:
        attention: a built `keras.layers.MultiHeadAttention`.
        queries: tensor of shape `(batch_size, k, hidden_dim)`.
        context: tensor of shape `(batch_size, m, hidden_dim)`.
        attention_mask: optional bool tensor that broadcasts to
            `(batch_size, k, m)`.
        training: bool, whether dropout is active.
        prefix: optional `keras_coda.layers.Prefix` to attend to as well.

    Returns:
        Tensor of the shape of `queries`.
    """
    if training and prefix is None:
        return attention(
            queries, context, attention_mask=attention_mask, training=True
        )
    query = call_dense(attention.query_dense, queries)
    key_dense, value_dense = attention.key_dense, attention.value_dense
    if prefix is None and can_absorb(
        query.shape, context.shape, key_dense, value_dense
    ):
        if attention_mask is not None:
            attention_mask = ops.expand_dims(attention_mask, 1)
        attended = attend_absorbed(
            query * attention.key_dim**-0.5,
            context,
            key_dense.kernel,
            value_dense.kernel,
            mask=attention_mask,
        )
        # The bias of the keys adds the same to all scores of a query, which
        # softmax ignores. The weights of the values sum to 1.
        if value_dense.bias is not None:
            attended = attended + ops.cast(value_dense.bias, attended.dtype)
    else:
        attended = attend_heads(
            query,
            call_dense(key_dense, context),
            call_dense(value_dense, context),
            mask=attention_mask,
            dropout=find_dropout(attention),
            training=training,
            prefix=prefix,
        )
    return call_dense(attention.output_dense, attended)


def find_dropout(attention):
    """The dropout layer inside an attention layer, or `None`."""
    for part in sublayers(attention):
        if isinstance(part, keras.layers.Dropout):
            return part
    return None


def attend_heads(
    query,
    key,
    value,
    mask=None,
    bias=None,
    scale=None,
    soft_cap=None,
    dropout=None,
    training=None,
    prefix=None,
):
    """Attention of rows that are projected to heads already.

    Args:
        query: tensor of shape `(batch_size, k, num_heads, head_dim)`.
        key: tensor of shape `(batch_size, m, num_key_heads, head_dim)`. Each
            of its heads serves a group of neighbouring query heads.
        value: tensor of the shape of `key`.
        mask: optional bool tensor that broadcasts to `(batch_size, k, m)`.
        bias: optional tensor of that shape, added to the scores; not both.
        scale: float. Defaults to `head_dim**-0.5`.
        soft_cap: optional float, beyond which no score gets, by way of tanh.
        dropout: optional `keras.layers.Dropout` of the attention weights.
        training: bool, whether dropout is active.
        prefix: optional `keras_coda.layers.Prefix` to attend to as well, not
            with a bias.

    Returns:
        Tensor of the shape of `query`.
    """
    if prefix is not None:
        key, value, mask = prefix(key, value, mask)
    mask, bias = (
        x if x is None else ops.expand_dims(x, 1) for x in (mask, bias)
    )
    if scale is None:
        scale = query.shape[-1] ** -0.5
    group = query.shape[2] // key.shape[2]
    if group > 1:
        key, value = (ops.repeat(x, group, axis=2) for x in (key, value))
    dropped = training and dropout is not None and dropout.rate > 0
    if fuses_attention() and soft_cap is None and not dropped:
        return ops.dot_product_attention(
            query, key, value, mask=mask, bias=bias, scale=scale
        )
    scores = ops.einsum("bkhe,bmhe->bhkm", query * scale, key)
    # As in fused attention: at least float32.
    scores = ops.cast(
        scores, keras.backend.result_type(scores.dtype, "float32")
    )
    if soft_cap is not None:
        scores = ops.tanh(scores / soft_cap) * soft_cap
    weights = ops.cast(weigh(scores, mask, bias), value.dtype)
    if dropped:
        weights = dropout(weights, training=True)
    return ops.einsum("bhkm,bmhe->bkhe", weights, value)


def weigh(scores, mask=None, bias=None):
    """The softmax of masked scores with a bias, each of them optional."""
    if scores.shape[-1] == 1:
        # Keras warns of a softmax of one number.
        return ops.ones_like(scores)
    if bias is not None:
        scores = scores + ops.cast(bias, scores.dtype)
    if mask is not None:
        # Added, the small mask is one pass over the scores; chosen by, in
        # TensorFlow's graphs and in ONNX, several.
        scores = scores + mask_scores(ops.zeros((), scores.dtype), mask)
    return ops.softmax(scores, axis=-1)


def can_absorb(query_shape, context_shape, *projections):
    """Whether `attend_absorbed` is worth it, see `is_worth_absorbing`.

    It is for fewer than about half of `head_dim` queries. Not asked where a
    length is only known at run time.

    Args:
        query_shape: `(batch_size, k, num_heads, head_dim)`.
        context_shape: `(batch_size, m, hidden_dim)`.
        *projections: the dense layers that make keys and values of it.
    """
    _, k, _, head_dim = query_shape
    _, m, hidden_dim = context_shape
    if not (isinstance(k, int) and isinstance(m, int)):
        return False
    # The kernel of a quantized layer is not what it multiplies with.
    if any(layer.quantization_mode is not None for layer in projections):
        return False
    # Over 2 * num_heads: k * m scores and sums, k or m projections.
    absorbed = k * m * hidden_dim + k * hidden_dim * head_dim
    projected = k * m * head_dim + m * hidden_dim * head_dim
    return is_worth_absorbing(absorbed, projected)


def is_worth_absorbing(absorbed, projected):
    """Whether attention with these multiply-adds is faster absorbed.

    Its matrix products have few rows, and are slower for it: BERT with 32 of
    128 tokens was slower at 0.7 of the multiply-adds, and with 16 faster.
    """
    return absorbed < 2 / 3 * projected


def attend_absorbed(
    query, context, key_kernel, value_kernel, mask=None, bias=None
):
    """Attention without the keys and values of all of the context.

    A score is `query . (key_kernel context) = (query key_kernel) . context`,
    and `sum(weights * (value_kernel context))` is
    `value_kernel sum(weights * context)`: each kernel can be applied to k
    queries in the place of m rows of the context.

    Args:
        query: tensor of shape `(batch_size, k, num_heads, head_dim)`, scaled.
        context: tensor of shape `(batch_size, m, hidden_dim)`.
        key_kernel: tensor of shape `(hidden_dim, num_heads, head_dim)`.
        value_kernel: tensor of shape `(hidden_dim, num_heads, value_dim)`.
        mask: optional bool tensor that broadcasts to
            `(batch_size, num_heads, k, m)`.
        bias: optional tensor of that shape, added to the scores.

    Returns:
        Tensor of shape `(batch_size, k, num_heads, value_dim)`.
    """
    dtype = query.dtype
    query = ops.einsum("bkhe,dhe->bhkd", query, ops.cast(key_kernel, dtype))
    scores = ops.einsum("bhkd,bmd->bhkm", query, context)
    # As in fused attention: at least float32.
    scores = ops.cast(scores, keras.backend.result_type(dtype, "float32"))
    weights = ops.cast(weigh(scores, mask, bias), dtype)
    rows = ops.einsum("bhkm,bmd->bhkd", weights, context)
    return ops.einsum("bhkd,dhe->bkhe", rows, ops.cast(value_kernel, dtype))
