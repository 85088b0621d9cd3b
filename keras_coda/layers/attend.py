import keras
from keras import ops

from keras_coda._keras_internals import sublayers
from keras_coda.backend_differences import fuses_attention
from keras_coda.backend_differences import fuses_over_copies
from keras_coda.backend_differences import fuses_sums
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
    dropped = training and dropout is not None and dropout.rate > 0
    is_fused = fuses_attention(query.dtype) and not dropped
    is_fused = is_fused and soft_cap is None
    if is_fused and group > 1:
        # It takes a copy of the keys for each head of a group.
        is_fused = query.shape[1] != 1 and fuses_over_copies()
        if is_fused:
            key, value = (ops.repeat(x, group, axis=2) for x in (key, value))
    if is_fused:
        return ops.dot_product_attention(
            query, key, value, mask=mask, bias=bias, scale=scale
        )
    axes = None
    if group > 1:
        batch_size, k, num_heads, _ = ops.shape(query)
        axes = batch_size, num_heads // group, group, k
        mask, bias = (
            x if x is None else ops.expand_dims(x, 1) for x in (mask, bias)
        )
    scores = ops.matmul(
        group_rows(query * scale, axes), ops.transpose(key, (0, 2, 3, 1))
    )
    # As in fused attention: at least float32.
    scores = ops.cast(
        scores, keras.backend.result_type(scores.dtype, "float32")
    )
    if soft_cap is not None:
        scores = ops.tanh(scores / soft_cap) * soft_cap
    shape = ops.shape(scores)
    if axes is not None:
        scores = ops.reshape(scores, (*axes, shape[-1]))
    weights = ops.cast(weigh(scores, mask, bias), value.dtype)
    if dropped:
        weights = dropout(weights, training=True)
    if axes is not None:
        weights = ops.reshape(weights, shape)
    rows = ops.matmul(weights, ops.transpose(value, (0, 2, 1, 3)))
    return ungroup_rows(rows, axes)


def group_rows(heads, axes=None):
    """Makes heads that share keys rows of one head.

    XLA and PyTorch multiply these in a fraction of the time that copies of the
    keys take, or a product of tensors of five axes.

    Args:
        heads: tensor of shape `(batch_size, k, num_heads, head_dim)`.
        axes: `(batch_size, num_key_heads, group, k)`, or `None` where no heads
            share keys.

    Returns:
        Tensor of shape `(batch_size, num_key_heads, group * k, head_dim)`.
    """
    if axes is None:
        return ops.transpose(heads, (0, 2, 1, 3))
    batch_size, num_key_heads, group, k = axes
    head_dim = heads.shape[-1]
    rows = ops.reshape(heads, (batch_size, k, num_key_heads, group, head_dim))
    rows = ops.transpose(rows, (0, 2, 3, 1, 4))
    return ops.reshape(rows, (batch_size, num_key_heads, group * k, head_dim))


def ungroup_rows(rows, axes=None):
    """Undoes `group_rows`."""
    if axes is None:
        return ops.transpose(rows, (0, 2, 1, 3))
    batch_size, num_key_heads, group, k = axes
    width = rows.shape[-1]
    heads = ops.transpose(ops.reshape(rows, (*axes, width)), (0, 3, 1, 2, 4))
    return ops.reshape(heads, (batch_size, k, num_key_heads * group, width))


def weigh(scores, mask=None, bias=None):
    """The softmax of masked scores with a bias, each of them optional."""
    if scores.shape[-1] == 1:
        # Keras warns of a softmax of one number.
        return ops.ones_like(scores)
    if bias is not None:
        scores = scores + ops.cast(bias, scores.dtype)
    if mask is not None and fuses_sums():
        # XLA makes a tensor of the size of the scores of what is added.
        scores = mask_scores(scores, mask)
    elif mask is not None:
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
