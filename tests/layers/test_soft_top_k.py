import keras
import numpy as np
import pytest

from keras_coda.layers import SoftTopK
from tests import reference
from tests.backend_helpers import to_numpy
from tests.layer_checks import check_layer

SCORES = np.random.default_rng(0).normal(size=(3, 10)).astype("float32")


@pytest.mark.parametrize(
    "arguments",
    [
        {"k": 3},
        {"reduction_factor": 2.5, "epsilon": 0.1},
        {
            "k": 4,
            "solver": "coordinate_descent",
            "num_iterations": 5,
            "epsilon_init": 2.0,
            "epsilon_decay": 0.5,
        },
    ],
)
def test_basics(arguments):
    check_layer(
        lambda **kwargs: SoftTopK(**arguments, **kwargs),
        input_shape=(3, 10),
        output_shape=(3, 10),
        num_trainable_weights=0,
    )


def test_weights():
    np.testing.assert_allclose(
        to_numpy(SoftTopK(k=3, epsilon=0.5)(SCORES)),
        reference.soft_top_k(SCORES, 3, epsilon=0.5),
        atol=1e-5,
    )
    # k = ceil(10 / 3)
    np.testing.assert_allclose(
        to_numpy(SoftTopK(reduction_factor=3)(SCORES)),
        reference.soft_top_k(SCORES, 4),
        atol=1e-5,
    )
    options = {"num_iterations": 5, "epsilon_init": 2.0, "epsilon_decay": 0.5}
    layer = SoftTopK(k=3, solver="coordinate_descent", **options)
    np.testing.assert_allclose(
        to_numpy(layer(SCORES)),
        reference.coordinate_descent(SCORES, 3, **options),
        rtol=1e-3,
        atol=1e-5,
    )


def test_mask():
    mask = np.arange(10) < np.array([[10], [2], [0]])
    expected = reference.soft_top_k(SCORES, 3, mask=mask)
    outputs = SoftTopK(k=3)(SCORES, mask=mask)
    np.testing.assert_allclose(to_numpy(outputs), expected, atol=1e-5)


def test_keras_mask_is_used_and_passed_on():
    token_ids = np.array([[5, 3, 4, 2], [3, 5, 0, 0], [0, 0, 0, 0]])
    model = keras.Sequential(
        [
            keras.Input((4,), dtype="int32"),
            keras.layers.Embedding(6, 1, mask_zero=True),
            # (batch_size, 4), with the mask of the embedding.
            keras.layers.Lambda(
                lambda x: x[..., 0], output_shape=(4,), mask=lambda _, m: m
            ),
            SoftTopK(k=3),
        ]
    )
    scores = np.arange(6.0)[:, None]
    model.layers[0].set_weights([scores])
    np.testing.assert_allclose(
        model.predict(token_ids, verbose=0),
        reference.soft_top_k(scores[token_ids][..., 0], 3, mask=token_ids > 0),
        atol=1e-5,
    )
    assert model.layers[-1].compute_mask(None, "mask") == "mask"


def test_length_may_change():
    model = keras.Sequential(
        [keras.Input((None,)), SoftTopK(reduction_factor=4)]
    )
    for n in (10, 5, 1):
        np.testing.assert_allclose(
            model.predict(SCORES[:, :n], verbose=0),
            reference.soft_top_k(SCORES[:, :n], -(-n // 4)),
            atol=1e-5,
        )


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({}, ValueError, "exactly one of `k` and `reduction_factor`"),
        ({"k": 2, "reduction_factor": 2}, ValueError, "exactly one of"),
        ({"k": 0}, ValueError, "`k` must be at least 1. Received: k=0"),
        ({"k": 1.5}, TypeError, "`k` must be an integer.*k=1.5"),
        ({"reduction_factor": 0.5}, ValueError, "reduction_factor=0.5"),
        ({"reduction_factor": "2"}, TypeError, "reduction_factor='2'"),
        ({"k": 2, "epsilon": 0}, ValueError, "`epsilon` must be a positive"),
        ({"k": 2, "solver": "sigmoid"}, ValueError, "`solver` must be one of"),
        ({"k": 2, "num_iterations": 0}, ValueError, "`num_iterations` must"),
        ({"k": 2, "epsilon_init": 0}, ValueError, "`epsilon_init` must"),
        ({"k": 2, "epsilon_decay": 0}, ValueError, "`epsilon_decay` must"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        SoftTopK(**arguments)


def test_bad_inputs():
    with pytest.raises(ValueError, match="at most the number of scores"):
        SoftTopK(k=11)(SCORES)
    with pytest.raises(ValueError, match="`mask` must have the shape"):
        SoftTopK(k=3)(SCORES, mask=np.ones((3, 9), bool))
