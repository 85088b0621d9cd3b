import keras
import numpy as np
import pytest

from keras_coda.layers import Prefix
from tests.backend_helpers import to_numpy

KEY, VALUE = np.random.default_rng(0).normal(size=(2, 2, 5, 3, 4))


def test_keys_and_values_come_first():
    prefix = Prefix(6, num_heads=3, head_dim=4)
    key, value, mask = prefix(KEY, VALUE)
    assert mask is None
    for own, heads, both in (
        (prefix.key, KEY, key),
        (prefix.value, VALUE, value),
    ):
        for row in range(2):
            np.testing.assert_array_equal(
                to_numpy(both)[row, :6], to_numpy(own)
            )
        np.testing.assert_allclose(to_numpy(both)[:, 6:], heads, atol=1e-6)


def test_every_query_attends_to_it():
    mask = np.array([[[True, False, True, False, False]]])
    *_, mask = Prefix(2, num_heads=3, head_dim=4)(KEY, VALUE, mask)
    expected = [[[True, True, True, False, True, False, False]]]
    np.testing.assert_array_equal(to_numpy(mask), expected)


def test_config_and_mixed_precision():
    prefix = Prefix(2, num_heads=3, head_dim=4, dtype="mixed_bfloat16")
    config = prefix.get_config()
    assert Prefix.from_config(config).get_config() == config
    key, value, _ = prefix(KEY, VALUE)
    for heads in (key, value):
        assert keras.backend.standardize_dtype(heads.dtype) == "bfloat16"
    assert {weight.dtype for weight in prefix.trainable_weights} == {"float32"}


@pytest.mark.parametrize("name", ["prefix_length", "num_heads", "head_dim"])
def test_bad_arguments(name):
    arguments = {"prefix_length": 1, "num_heads": 1, "head_dim": 1}
    with pytest.raises(ValueError, match=f"`{name}` must be.*{name}=0"):
        Prefix(**{**arguments, name: 0})
