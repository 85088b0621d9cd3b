import keras
import numpy as np
import pytest

from keras_coda.layers import TokenRouter
from tests import reference
from tests.backend_helpers import to_numpy
from tests.backend_helpers import variable_gradients
from tests.layer_checks import check_layer

ROUTERS = ("exact", "coordinate_descent", "sigmoid", "first_k")
SCORES = np.random.default_rng(0).normal(size=(4, 12)).astype("float32")
NUM_REAL = np.array([12, 7, 2, 0])
MASK = np.arange(12) < NUM_REAL[:, None]
EPSILON = 0.3


def route(scores, mask=None, pinned=None, **arguments):
    """Weights and positions for tokens whose scores are given."""
    router = TokenRouter(
        epsilon=EPSILON, kernel_initializer="ones", **arguments
    )
    weights, indices = router(scores[..., None], mask=mask, pinned=pinned)
    return to_numpy(weights), to_numpy(indices)


def expected_weights(name, scores, k, mask=None):
    """The weight that each token of a batch would get if it was routed."""
    if name == "exact":
        return reference.soft_top_k(scores, k, EPSILON, mask)
    if name == "coordinate_descent":
        return np.stack(
            [
                _unpadded_coordinate_descent(row, k, real)
                for row, real in zip(
                    scores, np.ones(scores.shape) if mask is None else mask
                )
            ]
        )
    if name == "sigmoid":
        weights = 1.0 / (1.0 + np.exp(-scores.astype("float64")))
    else:
        weights = np.ones(scores.shape)
    return weights if mask is None else weights * mask


def _unpadded_coordinate_descent(scores, k, real):
    real = np.asarray(real, bool)
    weights = np.zeros(scores.shape)
    if real.any():
        weights[real] = reference.coordinate_descent(
            scores[real], min(k, real.sum()), EPSILON
        )
    return weights


@pytest.mark.parametrize("name", ["exact", "first_k"])
def test_basics(name):
    check_layer(
        lambda **kwargs: TokenRouter(
            reduction_factor=3, router=name, num_prefix_tokens=1, **kwargs
        ),
        input_shape=(2, 10, 8),
        output_shape=[(2, 4), (2, 4)],
        num_trainable_weights=0 if name == "first_k" else 1,
        mixed_output_dtype="float32",
    )


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
def test_routes_the_best_tokens(name, mask):
    weights, indices = route(SCORES, mask, reduction_factor=4, router=name)
    assert weights.shape == indices.shape == (4, 3)
    assert weights.dtype == "float32" and indices.dtype == "int32"
    expected = expected_weights(name, SCORES, 3, mask)
    np.testing.assert_allclose(
        weights, np.take_along_axis(expected, indices, 1), rtol=1e-4, atol=1e-5
    )
    for row, index in enumerate(indices):
        real = np.arange(12) if mask is None else np.flatnonzero(mask[row])
        if name == "first_k":
            best = real[:3]
        else:
            best = real[np.argsort(-SCORES[row][real])][:3]
        # Fewer than k real tokens: all of them, and padding of weight 0.
        assert list(index[: len(best)]) == list(best)
        assert len(set(index)) == 3
        assert np.all(weights[row, len(best) :] == 0.0)
        assert np.all(weights[row, : len(best)] > 0.0)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
def test_prefix_tokens_are_always_routed(name, mask):
    # They would be the last to be picked.
    scores = SCORES.copy()
    scores[:, :2] = -100.0
    weights, indices = route(
        scores,
        mask,
        reduction_factor=3,
        router=name,
        num_prefix_tokens=2,
    )
    assert weights.shape == indices.shape == (4, 4)
    np.testing.assert_array_equal(indices[:, :2], [[0, 1]] * 4)
    prefix_mask = np.ones((4, 2)) if mask is None else mask[:, :2]
    np.testing.assert_array_equal(weights[:, :2], prefix_mask)
    # The others share the rest of the budget.
    expected = expected_weights(
        name, scores[:, 2:], 2, None if mask is None else mask[:, 2:]
    )
    np.testing.assert_allclose(
        weights[:, 2:],
        np.take_along_axis(expected, indices[:, 2:] - 2, 1),
        rtol=1e-4,
        atol=1e-5,
    )
    assert all(len(set(index)) == 4 for index in indices)


@pytest.mark.parametrize("name", ROUTERS)
def test_more_prefix_tokens_than_k(name):
    weights, indices = route(
        SCORES, reduction_factor=12, router=name, num_prefix_tokens=3
    )
    np.testing.assert_array_equal(indices, [[0, 1, 2]] * 4)
    np.testing.assert_array_equal(weights, np.ones((4, 3)))
    # More of them than tokens.
    weights, indices = route(
        SCORES[:, :2], reduction_factor=12, router=name, num_prefix_tokens=3
    )
    np.testing.assert_array_equal(indices, [[0, 1]] * 4)
    assert weights.shape == (4, 2)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["full", "padded"])
def test_a_pinned_prefix_is_a_prefix(name, mask):
    arguments = {"reduction_factor": 3, "router": name}
    expected = route(SCORES, mask, num_prefix_tokens=2, **arguments)
    pinned = np.tile(np.arange(12) < 2, (4, 1))
    actual = route(SCORES, mask, pinned, **arguments)
    for a, b in zip(_by_position(*actual), _by_position(*expected)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def _by_position(weights, indices):
    full = np.zeros((len(weights), 12))
    np.put_along_axis(full, indices, weights, axis=1)
    # Which padding fills up the k does not matter.
    return full, np.sort(np.where(weights > 0, indices, -1))


@pytest.mark.parametrize("name", ROUTERS)
def test_pinned_tokens(name):
    # None, the worst token, the last real one, and a row of padding.
    pinned = np.zeros((4, 12), bool)
    pinned[1, np.argmin(np.where(MASK[1], SCORES[1], 9))] = True
    pinned[2, [1, 5]] = True
    pinned[3, 0] = True
    weights, indices = route(
        SCORES, MASK, pinned, reduction_factor=4, router=name
    )
    full, _ = _by_position(weights, indices)
    assert weights.shape == (4, 3)
    assert np.all(full[pinned & MASK] == 1.0)
    assert np.all(full[~MASK] == 0.0)
    for row, budget in enumerate((3, 2, 1)):
        free = MASK[row] & ~pinned[row]
        expected = expected_weights(
            name, SCORES[None, row], budget, free[None]
        )[0]
        if name == "first_k":
            best = np.flatnonzero(free)[:budget]
        else:
            best = np.argsort(np.where(free, -SCORES[row], 9))[:budget]
        np.testing.assert_allclose(
            full[row, best], expected[best], rtol=1e-4, atol=1e-5
        )
        assert np.sum(full[row] > 0) <= 3


@pytest.mark.parametrize("name", ROUTERS)
def test_more_pinned_tokens_than_k(name):
    pinned = np.zeros((4, 12), bool)
    pinned[:, [2, 5, 9]] = True
    weights, indices = route(
        SCORES, None, pinned, reduction_factor=6, router=name
    )
    np.testing.assert_array_equal(indices, [[2, 5]] * 4)
    np.testing.assert_array_equal(weights, np.ones((4, 2)))
    # And with no reduction.
    weights, indices = route(
        SCORES, None, pinned, reduction_factor=1, router=name
    )
    np.testing.assert_array_equal(indices, [range(12)] * 4)
    np.testing.assert_array_equal(weights[pinned], np.ones(12))


def test_functional_model_at_any_reduction_factor():
    inputs = keras.Input((12, 1))
    for reduction_factor in (1, 4):
        outputs = TokenRouter(reduction_factor)(inputs)
        weights, indices = keras.Model(inputs, outputs).predict(
            SCORES[..., None], verbose=0
        )
        assert weights.shape == indices.shape == (4, 12 // reduction_factor)


def test_config_of_a_file_that_says_method():
    config = TokenRouter(router="sigmoid").get_config()
    config["method"] = config.pop("router")
    assert TokenRouter.from_config(config).router == "sigmoid"


@pytest.mark.parametrize("name", ROUTERS)
def test_short_sequences(name):
    # n < r: one token.
    weights, indices = route(SCORES[:, :3], reduction_factor=8, router=name)
    assert weights.shape == indices.shape == (4, 1)
    # n = 1: that one.
    weights, indices = route(SCORES[:, :1], reduction_factor=8, router=name)
    np.testing.assert_array_equal(indices, [[0]] * 4)
    assert weights.shape == (4, 1)


@pytest.mark.parametrize("name", ROUTERS)
def test_no_reduction_routes_every_token_in_order(name):
    weights, indices = route(SCORES, reduction_factor=1, router=name)
    np.testing.assert_array_equal(indices, [range(12)] * 4)
    if name in ("exact", "first_k"):
        np.testing.assert_array_equal(weights, np.ones((4, 12)))
    else:
        expected = expected_weights(name, SCORES, 12)
        np.testing.assert_allclose(weights, expected, rtol=1e-4, atol=1e-5)
    weights, indices = route(
        SCORES, MASK, reduction_factor=1, router=name, num_prefix_tokens=1
    )
    np.testing.assert_array_equal(indices, [range(12)] * 4)
    assert np.all(weights[:3, 0] == 1.0)


@pytest.mark.parametrize("name", ROUTERS)
def test_length_may_change(name):
    inputs = keras.Input((None, 1))
    router = TokenRouter(
        reduction_factor=4,
        router=name,
        num_prefix_tokens=1,
        kernel_initializer="ones",
        epsilon=EPSILON,
    )
    weights, _ = router(inputs)
    model = keras.Model(inputs, weights)
    for n in (12, 3, 1):
        expected, _ = route(
            SCORES[:, :n],
            reduction_factor=4,
            router=name,
            num_prefix_tokens=1,
        )
        actual = model.predict(SCORES[:, :n, None], verbose=0)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_scores_are_float32_under_mixed_precision():
    # 1 and 1.001 are the same bfloat16.
    scores = np.array([[1.0, 1.001, 0.0, 0.0]], "float32")
    expected, expected_indices = route(scores, reduction_factor=4)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        weights, indices = route(scores, reduction_factor=4)
    finally:
        keras.config.set_dtype_policy("float32")
    assert weights.dtype == "float32"
    assert indices[0, 0] == expected_indices[0, 0] == 1
    np.testing.assert_array_equal(weights, expected)


@pytest.mark.parametrize(
    "name, reduction_factor",
    [("exact", 4), ("coordinate_descent", 4), ("sigmoid", 4), ("exact", 1)],
)
def test_gradient_of_the_router(name, reduction_factor):
    inputs = np.random.default_rng(0).normal(size=(4, 12, 8))
    inputs = inputs.astype("float32")
    router = TokenRouter(reduction_factor, name, num_prefix_tokens=1)
    router.build(inputs.shape)

    def loss(outputs):
        weights = outputs[0]
        positions = keras.ops.arange(weights.shape[1], dtype="float32")
        return keras.ops.sum(weights * positions)

    gradients = variable_gradients(router, loss, inputs, MASK)
    (gradient,) = gradients.values()
    assert np.isfinite(gradient).all()
    # At r = 1 the exact weights are the constant 1.
    constant = name == "exact" and reduction_factor == 1
    assert np.any(gradient != 0.0) != constant


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"reduction_factor": 0.5}, ValueError, "reduction_factor=0.5"),
        ({"reduction_factor": -4}, ValueError, "must be at least 1"),
        ({"reduction_factor": float("nan")}, ValueError, "must be at least 1"),
        ({"reduction_factor": "4"}, TypeError, "must be a number"),
        ({"reduction_factor": None}, TypeError, "must be a number"),
        ({"reduction_factor": True}, TypeError, "must be a number"),
        ({"router": "top_k"}, ValueError, "`router` must be one of.*'top_k'"),
        ({"epsilon": 0.0}, ValueError, "`epsilon` must be a positive number"),
        ({"epsilon": -0.1}, ValueError, "`epsilon` must be a positive number"),
        ({"num_prefix_tokens": -1}, ValueError, "must be at least 0"),
        ({"num_prefix_tokens": 1.0}, TypeError, "must be an integer"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        TokenRouter(**arguments)


@pytest.mark.parametrize("shape", [(4, 11), (3, 12), (4,), (4, 12, 1)])
def test_mask_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"`mask` must have shape.*\(4, 12\)"):
        route(SCORES, np.ones(shape, bool))


def test_pinned_of_the_wrong_shape():
    with pytest.raises(
        ValueError, match=r"`pinned` must have shape.*\(4, 12\)"
    ):
        route(SCORES, None, np.ones((4, 11), bool))


def test_reduction_factor_is_checked_when_it_is_set():
    router = TokenRouter(reduction_factor=4)
    with pytest.raises(ValueError, match="must be at least 1"):
        router.reduction_factor = 0
    assert router.reduction_factor == 4
