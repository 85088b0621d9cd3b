import keras
import numpy as np
import pytest

from keras_coda.ops import soft_top_k
from tests import reference
from tests.backend_helpers import gradient
from tests.backend_helpers import jit
from tests.backend_helpers import to_numpy

SCALES = (1e-2, 1.0, 1e2, 1e4)


def gaussian(*shape, scale=1.0):
    scores = np.random.default_rng(0).normal(size=shape) * scale
    return scores.astype("float32")


def score_rows(n):
    """Rows of every scale: Gaussian, heavy-tailed, tied and equal scores."""
    rng = np.random.default_rng(n)
    kinds = [
        rng.normal(size=n),
        rng.standard_cauchy(size=n),
        # About n / 4 distinct values.
        rng.integers(0, n // 4 + 1, size=n),
        np.full(n, 0.7),
    ]
    rows = [kind * scale for kind in kinds for scale in SCALES]
    return np.array(rows, "float32")


# The exact solver


@pytest.mark.parametrize("n", [1, 2, 16, 512, 4096])
def test_exact_solver_finds_the_optimum(n):
    scores = score_rows(n)
    for k in sorted({1, n // 4, n - 1, n} - {0}):
        weights = to_numpy(soft_top_k(scores, k))
        np.testing.assert_allclose(
            weights, reference.soft_top_k(scores, k), rtol=0, atol=1e-5
        )
        np.testing.assert_allclose(weights.sum(-1), k, rtol=1e-5)
        assert weights.min() >= 0.0 and weights.max() <= 1.0


def test_exact_solver_at_other_epsilons():
    scores = score_rows(16)
    for epsilon in (1e-3, 0.5, 10.0):
        np.testing.assert_allclose(
            to_numpy(soft_top_k(scores, 5, epsilon=epsilon)),
            reference.soft_top_k(scores, 5, epsilon=epsilon),
            rtol=0,
            atol=1e-5,
        )


def test_k_of_one_is_softmax_and_k_of_n_is_ones():
    scores = gaussian(3, 8)
    softmax = np.exp(scores / 0.5)
    softmax /= softmax.sum(-1, keepdims=True)
    weights = to_numpy(soft_top_k(scores, 1, epsilon=0.5))
    np.testing.assert_allclose(weights, softmax, atol=1e-6)
    np.testing.assert_array_equal(
        to_numpy(soft_top_k(scores, 8)), np.ones((3, 8))
    )


def test_budgets_may_differ_from_row_to_row():
    scores = gaussian(4, 16, scale=0.1)
    budgets = np.array([1, 3, 15, 16], "int32")
    np.testing.assert_allclose(
        to_numpy(soft_top_k(scores, budgets)),
        reference.soft_top_k(scores, budgets),
        atol=1e-5,
    )


def test_any_batch_shape():
    scores = gaussian(2, 3, 16, scale=0.1)
    expected = reference.soft_top_k(scores, 4)
    np.testing.assert_allclose(
        to_numpy(soft_top_k(scores, 4)), expected, atol=1e-5
    )
    np.testing.assert_allclose(
        to_numpy(soft_top_k(scores[0, 0], 4)), expected[0, 0], atol=1e-5
    )
    budgets = np.arange(6).reshape((2, 3)) + 1
    np.testing.assert_allclose(
        to_numpy(soft_top_k(scores, budgets)),
        reference.soft_top_k(scores, budgets),
        atol=1e-5,
    )


@pytest.mark.parametrize("solver", ["exact", "coordinate_descent"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(solver, dtype):
    scores = keras.ops.cast(gaussian(3, 16, scale=30.0), dtype)
    weights = soft_top_k(scores, 4, solver=solver)
    assert keras.backend.standardize_dtype(weights.dtype) == dtype
    in_float32 = soft_top_k(keras.ops.cast(scores, "float32"), 4, solver=solver)
    np.testing.assert_array_equal(
        to_numpy(weights), to_numpy(keras.ops.cast(in_float32, dtype))
    )


# Masks


def test_masked_scores_get_zero_and_no_budget():
    scores = gaussian(5, 12, scale=0.1)
    # The best scores are among the masked ones.
    scores[:, 6:] += 100.0
    num_real = np.array([12, 6, 3, 1, 0])
    mask = np.arange(12) < num_real[:, None]
    weights = to_numpy(soft_top_k(scores, 4, mask=mask))
    np.testing.assert_allclose(
        weights, reference.soft_top_k(scores, 4, mask=mask), atol=1e-5
    )
    assert np.all(weights[~mask] == 0.0)
    np.testing.assert_allclose(
        weights.sum(-1), np.minimum(num_real, 4), rtol=1e-5
    )


def test_budget_of_coordinate_descent_is_that_of_the_real_scores():
    scores = gaussian(2, 64)
    num_real = np.array([64, 32])
    mask = np.arange(64) < num_real[:, None]
    weights = to_numpy(
        soft_top_k(scores, 48, solver="coordinate_descent", mask=mask)
    )
    for row, n in enumerate(num_real):
        np.testing.assert_allclose(
            weights[row, :n],
            reference.coordinate_descent(scores[row, :n], min(48, n)),
            rtol=1e-3,
            atol=1e-5,
        )


@pytest.mark.parametrize("solver", ["exact", "coordinate_descent"])
@pytest.mark.parametrize("scale", SCALES)
def test_padding_changes_nothing(solver, scale):
    scores = gaussian(2, 8, scale=scale)
    padding = np.array([[0.0, -1e6, 1e6], [np.pi, 0.0, -1.0]], "float32")
    padded = np.concatenate([padding, scores], axis=1)
    mask = np.arange(11)[None, :].repeat(2, axis=0) >= 3
    weights = to_numpy(soft_top_k(padded, 3, solver=solver, mask=mask))
    np.testing.assert_allclose(
        weights[:, 3:],
        to_numpy(soft_top_k(scores, 3, solver=solver)),
        atol=1e-6,
    )
    assert np.all(weights[:, :3] == 0.0)


@pytest.mark.parametrize("solver", ["exact", "coordinate_descent"])
def test_a_row_of_padding_gives_zeros(solver):
    scores = gaussian(2, 8)
    mask = np.array([[0] * 8, [1] * 8], "int32")
    weights = to_numpy(soft_top_k(scores, 3, solver=solver, mask=mask))
    np.testing.assert_array_equal(weights[0], np.zeros(8))
    assert weights[1].max() > 0.5


# Gradients


@pytest.mark.parametrize("k", [1, 3, 6])
def test_exact_gradient_is_that_of_the_optimum(k):
    # Some entries saturate at this scale, and some share what is left.
    scores = gaussian(2, 7, scale=0.1).astype("float64")
    direction = gaussian(7, 2).T
    expected = reference.finite_differences(
        lambda s: (reference.soft_top_k(s, k) * direction).sum(), scores
    )
    assert np.abs(expected).max() > 0.1
    actual = gradient(lambda s: soft_top_k(s, k), scores, direction)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


def test_masked_gradient_is_that_of_the_optimum():
    scores = gaussian(4, 7, scale=0.1)
    mask = np.arange(7) < np.array([[7], [5], [2], [0]])
    direction = gaussian(7, 4).T
    expected = reference.finite_differences(
        lambda s: (reference.soft_top_k(s, 3, mask=mask) * direction).sum(),
        scores,
    )
    actual = gradient(lambda s: soft_top_k(s, 3, mask=mask), scores, direction)
    assert np.abs(actual[0]).max() > 0.1
    assert np.all(actual[~mask] == 0.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["exact", "coordinate_descent"])
def test_gradient_is_finite_at_every_scale(solver):
    scores = np.concatenate([score_rows(16), score_rows(16)])
    mask = np.ones(scores.shape, bool)
    mask[: len(mask) // 2, 3:] = False
    mask[0] = False
    direction = gaussian(*scores.shape)

    actual = gradient(
        lambda s: soft_top_k(s, 5, solver=solver, mask=mask), scores, direction
    )
    assert np.isfinite(actual).all()
    assert np.all(actual[~mask] == 0.0)


def test_gradient_is_zero_where_all_are_selected():
    # Also of tied scores: the weights are 1 whatever the scores are.
    scores = np.array([[0.3, 0.1, 0.2], [0.5, 0.1, 0.1], [0.7, 0.7, 0.7]])
    direction = gaussian(3, 3)
    actual = gradient(lambda s: soft_top_k(s, 3), scores, direction)
    np.testing.assert_array_equal(actual, np.zeros((3, 3)))


# Coordinate descent


@pytest.mark.parametrize("k", [1, 4, 15, 16])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
def test_coordinate_descent_is_that_of_the_paper(k, scale):
    scores = gaussian(3, 16, scale=scale)
    np.testing.assert_allclose(
        to_numpy(soft_top_k(scores, k, solver="coordinate_descent")),
        reference.coordinate_descent(scores, k),
        rtol=1e-3,
        atol=1e-5,
    )


def test_options_of_coordinate_descent():
    scores = gaussian(3, 16)
    options = {
        "epsilon": 0.1,
        "num_iterations": 3,
        "epsilon_init": 0.5,
        "epsilon_decay": 0.9,
    }
    expected = reference.coordinate_descent(scores, 4, **options)
    actual = soft_top_k(scores, 4, solver="coordinate_descent", **options)
    np.testing.assert_allclose(to_numpy(actual), expected, atol=1e-5)
    for name in options:
        fewer = {key: options[key] for key in options if key != name}
        other = reference.coordinate_descent(scores, 4, **fewer)
        assert np.abs(other - expected).max() > 1e-3


def test_coordinate_descent_converges_to_the_optimum():
    scores = gaussian(3, 16, scale=0.05)
    optimum = reference.soft_top_k(scores, 4)
    errors = []
    for num_iterations in (5, 20, 80):
        weights = soft_top_k(
            scores,
            4,
            solver="coordinate_descent",
            num_iterations=num_iterations,
        )
        errors.append(np.abs(to_numpy(weights) - optimum).max())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


# Compiled


@pytest.mark.parametrize("solver", ["exact", "coordinate_descent"])
def test_compiled_equals_eager(solver):
    scores = gaussian(3, 16)
    mask = np.arange(16) < np.array([[16], [9], [0]])
    budgets = np.array([5, 2, 5], "int32")

    def masked(s):
        return soft_top_k(s, budgets, solver=solver, mask=mask)

    np.testing.assert_allclose(
        to_numpy(jit(masked)(scores)),
        to_numpy(masked(scores)),
        rtol=1e-4,
        atol=1e-6,
    )


# Errors


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"k": 0}, "`k` must be at least 1.*Received: k=0"),
        ({"k": -2}, "`k` must be at least 1.*Received: k=-2"),
        ({"k": 9}, r"`k` must be at least 1 and at most.*k=9.*\(2, 8\)"),
        ({"epsilon": 0.0}, "`epsilon` must be a positive.*epsilon=0.0"),
        ({"epsilon": -1.0}, "`epsilon` must be a positive.*epsilon=-1.0"),
        ({"epsilon": float("nan")}, "`epsilon` must be a positive"),
        ({"solver": "newton"}, "`solver` must be one of.*solver='newton'"),
        ({"mask": np.ones((2, 7))}, r"`mask` must have the shape.*\(2, 7\)"),
        ({"mask": np.ones(8)}, r"`mask` must have the shape.*\(8,\)"),
        (
            {"solver": "coordinate_descent", "num_iterations": 0},
            "`num_iterations` must be at least 1",
        ),
        (
            {"solver": "coordinate_descent", "epsilon_init": 0.0},
            "`epsilon_init` must be a positive",
        ),
        (
            {"solver": "coordinate_descent", "epsilon_decay": 1.0},
            "`epsilon_decay` must lie between 0 and 1",
        ),
    ],
)
def test_arguments_out_of_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        soft_top_k(gaussian(2, 8), **{"k": 3, **arguments})


@pytest.mark.parametrize("k", [2.0, True, "2", None, np.array([1.5, 2.0])])
def test_k_that_is_no_integer(k):
    with pytest.raises(TypeError, match="`k` must be an integer"):
        soft_top_k(gaussian(2, 8), k)
