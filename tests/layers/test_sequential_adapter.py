import numpy as np

from keras_coda.layers import ParallelAdapter
from keras_coda.layers import SequentialAdapter
from tests.backend_helpers import to_numpy
from tests.layer_checks import check_layer
from tests.layer_checks import randomize_weights

INPUTS = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")


def test_basics():
    check_layer(
        lambda **kwargs: SequentialAdapter(4, scale=0.5, **kwargs),
        input_shape=(2, 5, 8),
        output_shape=(2, 5, 8),
        num_trainable_weights=4,
    )


def test_fresh_adapter_returns_its_inputs():
    outputs = SequentialAdapter(adapter_dim=4)(INPUTS)
    np.testing.assert_array_equal(to_numpy(outputs), INPUTS)


def test_it_adds_the_bottleneck_of_a_parallel_adapter():
    sequential, parallel = SequentialAdapter(4), ParallelAdapter(4)
    for adapter in (sequential, parallel):
        adapter.build(INPUTS.shape)
        randomize_weights(adapter)
    np.testing.assert_allclose(
        to_numpy(sequential(INPUTS)),
        INPUTS + to_numpy(parallel(INPUTS)),
        atol=1e-6,
    )
