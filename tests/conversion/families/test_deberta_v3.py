import pytest

import keras_coda
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import predict
from tests.conversion.tiny import tiny_models

TINY = tiny_models()["DebertaV3Backbone"]


@pytest.mark.parametrize("length", [4, 5, 6, 30, 80])
@pytest.mark.parametrize(
    "bucket_size", [9, pytest.param(8, marks=slow_to_compile)]
)
def test_distances_near_and_far(bucket_size, length):
    # Up to 4 tokens away each distance is a bucket, and 63 is the last.
    dense = TINY.make(bucket_size=bucket_size)
    inputs = {
        name: value[:, :length] for name, value in TINY.inputs(80).items()
    }
    inputs["padding_mask"][:] = 1
    expected = predict(dense, inputs)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    assert_close(predict(coda, inputs), expected)


def test_flops_of_positions():
    coda = keras_coda.coda_wrap(TINY.make(), reduction_factor=4)
    dim, layers = 16, 2
    for length, positions in [(4, 7), (64, 16)]:
        flops = keras_coda.analysis.flops(coda, sequence_length=length)
        kernels = 4 * length + 2 * positions
        assert flops.dense["projections"] == layers * kernels * dim**2
        pairs = 2 * length**2 + 2 * length * positions
        assert flops.dense["attention"] == layers * pairs * dim
        k = length // 4
        pairs = 2 * k * length + (k + length) * positions
        assert flops.coda["attention"] == layers * pairs * dim
