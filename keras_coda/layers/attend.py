from keras import ops


def attend(attention, queries, context, attention_mask=None, training=None):
    """Calls a `keras.layers.MultiHeadAttention`, fused at inference.

    The layer itself computes and stores all scores if it has dropout, also at
    inference, where the dropout does nothing. A sixth of the time of a BERT
    block at n = 512 on PyTorch went there.

    Args:
        attention: a built `keras.layers.MultiHeadAttention`.
        queries: tensor of shape `(batch_size, k, hidden_dim)`.
        context: tensor of shape `(batch_size, m, hidden_dim)`.
        attention_mask: optional bool tensor that broadcasts to
            `(batch_size, k, m)`.
        training: bool, whether dropout is active.

    Returns:
        Tensor of the shape of `queries`.
    """
    if training:
        return attention(
            queries, context, attention_mask=attention_mask, training=True
        )
    if attention_mask is not None:
        attention_mask = ops.expand_dims(attention_mask, 1)
    attended = ops.dot_product_attention(
        attention.query_dense(queries),
        attention.key_dense(context),
        attention.value_dense(context),
        mask=attention_mask,
    )
    return attention.output_dense(attended)
