"""Moving token rows to where a Transformer block computes, and back."""

import math

from keras import ops

from keras_coda.backend_differences import add_rows_in_place
from keras_coda.backend_differences import adds_in_place
from keras_coda.backend_differences import shards_batches


def routed_length(length, reduction_factor):
    """The number of tokens k = ceil(n / r) that a block computes.

    Args:
        length: int or int tensor. The sequence length n.
        reduction_factor: float >= 1. The ratio r of tokens to routed tokens.

    Returns:
        An int if `length` is one, else an int32 tensor; at least 1.

    Example:

    >>> keras_coda.ops.routed_length(10, 4)
    3
    """
    if reduction_factor == 1:
        return length
    # 11 / 1.1 is a little over 10 in floating point; it must not become 11.
    tolerance = 1e-5
    if isinstance(length, int):
        return max(1, math.ceil(length / reduction_factor - tolerance))
    quotient = ops.cast(length, "float32") / reduction_factor
    return ops.maximum(ops.cast(ops.ceil(quotient - tolerance), "int32"), 1)


def gather_rows(inputs, indices):
    """Gathers rows of each batch element: `outputs[b, i] = inputs[b, j]`.

    Args:
        inputs: tensor of shape `(batch_size, n, ...)`.
        indices: int tensor of shape `(batch_size, k)`; entry `(b, i)` is the
            row j of batch element b.

    Returns:
        Tensor of shape `(batch_size, k, ...)`.

    Example:

    >>> inputs = np.array([[[1.0], [2.0], [3.0]]])
    >>> rows = keras_coda.ops.gather_rows(inputs, np.array([[2, 0]]))
    >>> print(keras.ops.convert_to_numpy(rows)[0, :, 0])
    [3. 1.]
    """
    inputs = ops.convert_to_tensor(inputs)
    indices = ops.convert_to_tensor(indices)
    if shards_batches():
        return ops.vectorized_map(_take, (inputs, indices))
    batch_size, length, *row_shape = ops.shape(inputs)
    flat_inputs = ops.reshape(inputs, (batch_size * length, *row_shape))
    return _take((flat_inputs, _flat_indices(indices, length)))


def add_rows(inputs, rows, indices, in_place=False):
    """Adds to the rows that `gather_rows` takes; the others stay as they are.

    Args:
        inputs: tensor of shape `(batch_size, n, dim)`.
        rows: tensor of shape `(batch_size, k, dim)`.
        indices: int tensor of shape `(batch_size, k)`, distinct in each row.
        in_place: bool. Whether the sum may take the place of `inputs`, which
            saves a copy on PyTorch. Defaults to `False`.

    Returns:
        Tensor of shape `(batch_size, n, dim)`.

    Example:

    >>> inputs = np.array([[[1.0], [2.0], [3.0]]])
    >>> rows = np.array([[[30.0], [10.0]]])
    >>> outputs = keras_coda.ops.add_rows(inputs, rows, np.array([[2, 0]]))
    >>> print(keras.ops.convert_to_numpy(outputs)[0, :, 0])
    [11.  2. 33.]
    """
    inputs = ops.convert_to_tensor(inputs)
    rows = ops.convert_to_tensor(rows)
    indices = ops.convert_to_tensor(indices)
    if shards_batches():
        return ops.vectorized_map(_add, (inputs, rows, indices))
    batch_size, length, dim = ops.shape(inputs)
    flat = (
        ops.reshape(inputs, (batch_size * length, dim)),
        ops.reshape(rows, (-1, dim)),
        ops.reshape(_flat_indices(indices, length), (-1,)),
    )
    saves_copy = in_place and adds_in_place()
    outputs = add_rows_in_place(*flat) if saves_copy else _add(flat)
    return ops.reshape(outputs, (batch_size, length, dim))


def gather_pairs(inputs, query_indices=None, key_indices=None):
    """Gathers the query rows, and key columns, of an attention mask or bias.

    Args:
        inputs: tensor of shape `(batch_size, n, n)`, or with axes between the
            batch and the queries such as `(batch_size, num_heads, n, n)`. The
            batch size may be 1, for what all batch elements share, and the
            query axis may be 1, for what all queries share.
        query_indices: optional int tensor of shape `(batch_size, k)`. `None`
            keeps all queries.
        key_indices: optional int tensor of shape `(batch_size, k)`. `None`
            keeps all keys.

    Returns:
        Tensor of shape `(batch_size, ..., k, n)`, or `(batch_size, ..., k, k)`
        with `key_indices`. A query axis of 1 stays 1.

    Example:

    >>> mask = np.arange(9).reshape((1, 3, 3))
    >>> routed = np.array([[2, 0]])
    >>> pairs = keras_coda.ops.gather_pairs(mask, routed, routed)
    >>> print(keras.ops.convert_to_numpy(pairs)[0])
    [[8 6]
     [2 0]]
    """
    inputs = ops.convert_to_tensor(inputs)
    if query_indices is not None and inputs.shape[-2] != 1:
        inputs = _gather_axis(inputs, query_indices, axis=-2)
    if key_indices is not None:
        inputs = _gather_axis(inputs, key_indices, axis=-1)
    return inputs


def _gather_axis(inputs, indices, axis):
    rank = len(inputs.shape)
    axis = rank + axis
    if inputs.shape[0] == 1:
        # (1, ..., n, ...) with indices (batch_size, k): the new batch axis
        # arrives at `axis` and moves to the front.
        outputs = ops.take(ops.squeeze(inputs, 0), indices, axis=axis - 1)
        return ops.moveaxis(outputs, axis - 1, 0)
    # Rows must follow the batch axis to be gathered, and then go back.
    outputs = gather_rows(ops.moveaxis(inputs, axis, 1), indices)
    return ops.moveaxis(outputs, 1, axis)


def _take(inputs_and_indices):
    inputs, indices = inputs_and_indices
    return ops.take(inputs, indices, axis=0)


def _add(inputs_rows_and_indices):
    # Adding is faster on XLA than writing rows into zeros, and its gradient is
    # a gather. `ops.scatter` would be a Python loop over the rows on PyTorch.
    inputs, rows, indices = inputs_rows_and_indices
    return ops.scatter_update(
        inputs, ops.expand_dims(indices, -1), rows, reduction="add"
    )


def _flat_indices(indices, length):
    """Indices into the `(batch_size * n)` rows of a flattened batch."""
    indices = ops.cast(indices, "int32")
    offsets = ops.arange(ops.shape(indices)[0], dtype="int32") * length
    return indices + ops.expand_dims(offsets, -1)
