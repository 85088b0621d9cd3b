"""What routing tells a block: which rows to compute, and what they read."""

from typing import Any
from typing import NamedTuple

from keras import ops

from keras_coda.ops.routing import add_rows
from keras_coda.ops.routing import gather_pairs
from keras_coda.ops.routing import gather_rows


class Rows(NamedTuple):
    """Some rows of each sequence in a batch, or all of them.

    Attributes:
        indices: int32 tensor of shape `(batch_size, k)`, or `None` for all
            rows in their order, which nothing below has to move then.
    """

    indices: Any = None

    @property
    def are_all(self):
        return self.indices is None

    def gather(self, inputs):
        """These rows of a tensor of shape `(batch_size, n, ...)`."""
        return inputs if self.are_all else gather_rows(inputs, self.indices)

    def add(self, inputs, rows):
        """`inputs` of all rows, which nothing else holds, and `rows`."""
        if self.are_all:
            return inputs + rows
        return add_rows(inputs, rows, self.indices, in_place=True)

    def positions(self, rows):
        """int32 positions of shape `(batch_size or 1, k)`.

        `rows` is a tensor of shape `(batch_size, k, ...)`, read for k alone.
        """
        if self.are_all:
            length = ops.shape(rows)[1]
            return ops.expand_dims(ops.arange(length, dtype="int32"), 0)
        return self.indices


class BlockRouting(NamedTuple):
    """Which rows a block computes, and how its update of them is weighted.

    Attributes:
        weights: float32 tensor of shape `(batch_size, k)`.
        rows: `Rows`.
    """

    weights: Any
    rows: Rows


class Routed(NamedTuple):
    """The rows that a block computes, and what they attend to.

    With k rows to compute and m to attend to:

    Attributes:
        rows: tensor of shape `(batch_size, k, hidden_dim)`, rows of the
            block's inputs.
        queries: the same rows of `DenseBlock.attention_input`.
        context: tensor of shape `(batch_size, m, hidden_dim)`, the rows of
            `attention_input` to attend to.
        mask: bool tensor that broadcasts to `(batch_size, k, m)`, true where a
            row may attend, or `None`.
        query_rows: `Rows`, which rows `rows` are.
        context_rows: `Rows`, which rows `context` is.
        shared: what the blocks of a stack share, such as the position bias of
            T5; `None` for most families.

    Example:

    >>> inputs = np.arange(8.0).reshape((1, 4, 2))
    >>> routed = keras_coda.layers.Routed(inputs, inputs, inputs)
    >>> print(keras.ops.convert_to_numpy(routed.positions))
    [[0 1 2 3]]
    """

    rows: Any
    queries: Any
    context: Any
    mask: Any = None
    query_rows: Rows = Rows()
    context_rows: Rows = Rows()
    shared: Any = None

    @property
    def positions(self):
        """int32 positions of `rows`, of shape `(batch_size or 1, k)`."""
        return self.query_rows.positions(self.queries)

    @property
    def context_positions(self):
        """int32 positions of `context`, of shape `(batch_size or 1, m)`."""
        return self.context_rows.positions(self.context)

    @property
    def distances(self):
        """int32 `context_positions - positions`, `(batch_size or 1, k, m)`."""
        return ops.expand_dims(self.context_positions, 1) - ops.expand_dims(
            self.positions, 2
        )

    def without_later(self):
        """The same, with no row attending to what comes after it."""
        mask = self.distances <= 0
        if self.mask is not None:
            mask = ops.logical_and(mask, self.mask)
        return self._replace(mask=mask)

    def pairs(self, values):
        """What belongs to these rows and context of a value for each pair.

        Args:
            values: tensor of shape `(batch_size or 1, ..., n, n)`.

        Returns:
            Tensor of shape `(batch_size or 1, ..., k, m)`.
        """
        return gather_pairs(
            values, self.query_rows.indices, self.context_rows.indices
        )
