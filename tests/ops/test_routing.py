import numpy as np
import pytest

from keras_coda.ops import add_rows
from keras_coda.ops import gather_pairs
from keras_coda.ops import gather_rows
from keras_coda.ops import routed_length
from tests.backend_helpers import gradient
from tests.backend_helpers import jit
from tests.backend_helpers import to_numpy

INDICES = np.array([[2, 0], [3, 1]], "int32")
BATCH = np.arange(2)[:, None]


def numbers(*shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


def there_and_back(inputs):
    return add_rows(inputs, 10.0 * gather_rows(inputs, INDICES), INDICES)


@pytest.mark.parametrize(
    "length, reduction_factor, expected",
    [
        (12, 4, 3),
        (13, 4, 4),
        (10, 1, 10),
        (3, 4, 1),
        (1, 100, 1),
        (11, 1.1, 10),
        (10, 2.5, 4),
        (10, 1.5, 7),
    ],
)
def test_routed_length(length, reduction_factor, expected):
    assert routed_length(length, reduction_factor) == expected
    if reduction_factor != 1:
        in_graph = routed_length(np.array(length, "int32"), reduction_factor)
        assert int(to_numpy(in_graph)) == expected


def test_gather_rows():
    inputs = numbers(2, 4, 3)
    rows = to_numpy(gather_rows(inputs, INDICES))
    np.testing.assert_array_equal(rows, inputs[BATCH, INDICES])
    # Rows of any rank, also single numbers.
    for inputs in (numbers(2, 4), numbers(2, 4, 3, 2)):
        rows = to_numpy(gather_rows(inputs, INDICES))
        np.testing.assert_array_equal(rows, inputs[BATCH, INDICES])


def test_add_rows():
    inputs, rows = numbers(2, 4, 3), numbers(2, 2, 3) + 1.0
    expected = inputs.copy()
    expected[BATCH, INDICES] += rows
    outputs = to_numpy(add_rows(inputs, rows, INDICES))
    np.testing.assert_array_equal(outputs, expected)


def test_gradients_of_the_routed_rows():
    inputs, direction = numbers(2, 4, 3), numbers(2, 4, 3) + 1.0

    expected = direction.copy()
    expected[BATCH, INDICES] *= 11.0
    actual = gradient(there_and_back, inputs, direction)
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("axes", [(), (2,)])
def test_gather_pairs(axes):
    inputs = numbers(2, *axes, 4, 4)
    queries = to_numpy(gather_pairs(inputs, INDICES))
    pairs = to_numpy(gather_pairs(inputs, INDICES, INDICES[:, ::-1]))
    for row, index in enumerate(INDICES):
        expected = inputs[row][..., index, :]
        np.testing.assert_array_equal(queries[row], expected)
        np.testing.assert_array_equal(pairs[row], expected[..., index[::-1]])


def test_gather_pairs_that_the_batch_shares():
    inputs = numbers(1, 2, 4, 4)
    queries = to_numpy(gather_pairs(inputs, INDICES))
    pairs = to_numpy(gather_pairs(inputs, INDICES, INDICES))
    for row, index in enumerate(INDICES):
        expected = inputs[0][:, index, :]
        np.testing.assert_array_equal(queries[row], expected)
        np.testing.assert_array_equal(pairs[row], expected[..., index])


def test_gather_pairs_that_the_queries_share():
    inputs = numbers(2, 1, 4)
    np.testing.assert_array_equal(
        to_numpy(gather_pairs(inputs, INDICES)), inputs
    )
    np.testing.assert_array_equal(
        to_numpy(gather_pairs(inputs, INDICES, INDICES)),
        inputs[BATCH, 0, INDICES][:, None],
    )


def test_compiled_equals_eager():
    inputs = numbers(2, 4, 3)
    expected = inputs.copy()
    expected[BATCH, INDICES] *= 11.0
    np.testing.assert_array_equal(
        to_numpy(jit(there_and_back)(inputs)), expected
    )
