"""Soft top-k: a differentiable relaxation of selecting the k best scores."""

import numbers

import keras
from keras import ops

from keras_coda.ops.masking import mask_scores
from keras_coda.ops.routing import gather_rows

SOLVERS = ("exact", "coordinate_descent")


def soft_top_k(
    scores,
    k,
    epsilon=0.03,
    solver="exact",
    mask=None,
    num_iterations=20,
    epsilon_init=4.0,
    epsilon_decay=0.7,
):
    """Selects the `k` largest scores of each row, softly.

    Maximises `sum(scores * weights) + epsilon * H(weights)` over weights in
    `[0, 1]` that sum to `k` in each row, where `H` is the entropy. The smaller
    `epsilon`, the closer the weights come to zeros and ones.

    - `solver="exact"` returns the optimum itself,
      `min(1, exp((scores + a) / epsilon))`, from one sort and a few sums. The
      weights sum to `k`, `k = n` gives ones and `k = 1` gives
      `softmax(scores / epsilon)`. The gradient is that of the optimum.
    - `solver="coordinate_descent"` runs the fixed number of iterations of the
      paper. It is faithful to it but stops short of the optimum: the weights
      need not sum to `k`, and at `k = n` they are not ones.

    float16 and bfloat16 scores are computed in float32.

    Args:
        scores: float tensor of shape `(..., n)`.
        k: int, or an int tensor of the batch shape `(...)` with one budget per
            row. At least 1 and at most `n`. A row with fewer than `k` unmasked
            scores has that number as its budget.
        epsilon: float > 0. Weight of the entropy, in units of the scores.
            Defaults to `0.03`, the paper's.
        solver: `"exact"` or `"coordinate_descent"`. Defaults to `"exact"`.
        mask: optional bool or int tensor of the shape of `scores`. Where it is
            false the weight is 0. A row masked everywhere gives zeros.
        num_iterations: int > 0. Iterations of coordinate descent. Defaults to
            `20`.
        epsilon_init: float > 0. The first iteration's epsilon. Defaults to
            `4.0`.
        epsilon_decay: float in (0, 1). Factor on epsilon per iteration, until
            `epsilon` is reached. Defaults to `0.7`.

    Returns:
        Tensor of the shape and dtype of `scores`, in `[0, 1]`.

    Raises:
        ValueError: if `k` is below 1 or above `n`, if `epsilon` or an option
            of the coordinate descent is out of range, if `solver` is unknown,
            or if the shape of `mask` is not that of `scores`.
        TypeError: if `k` is neither an integer nor an integer tensor.

    Example:

    >>> scores = np.array([[4.0, 1.0, 3.0, 2.0]])
    >>> weights = keras_coda.ops.soft_top_k(scores, k=2, epsilon=0.5)
    >>> print(np.round(keras.ops.convert_to_numpy(weights), 2))
    [[1.   0.02 0.87 0.12]]

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), eq. 12 (the
        problem) and eq. 13 (coordinate descent).
    """
    weights, _ = soft_top_k_and_best(
        scores,
        k,
        epsilon,
        solver,
        mask,
        num_iterations,
        epsilon_init,
        epsilon_decay,
    )
    return weights


def soft_top_k_and_best(
    scores,
    k,
    epsilon=0.03,
    solver="exact",
    mask=None,
    num_iterations=20,
    epsilon_init=4.0,
    epsilon_decay=0.7,
):
    """`soft_top_k` and `best_positions`, for the price of one sort."""
    scores = ops.convert_to_tensor(scores)
    if mask is not None:
        mask = ops.cast(ops.convert_to_tensor(mask), "bool")
    _validate_problem(scores, k, epsilon, solver, mask)
    if solver == "coordinate_descent":
        validate_coordinate_descent(num_iterations, epsilon_init, epsilon_decay)

    dtype = keras.backend.standardize_dtype(scores.dtype)
    compute_dtype = "float64" if dtype == "float64" else "float32"
    scores = ops.cast(scores, compute_dtype)
    budget = _budget(scores, k, mask)
    best = best_positions(scores, k, mask)

    if solver == "exact":
        weights = _exact(scores, budget, epsilon, mask, best)
    else:
        weights = _coordinate_descent(
            scores,
            budget,
            epsilon,
            mask,
            num_iterations,
            epsilon_init,
            epsilon_decay,
        )
    if mask is not None:
        weights = ops.where(mask, weights, ops.zeros_like(weights))
    return ops.cast(weights, dtype), best


def best_positions(scores, k, mask=None):
    """The int32 positions of the `k` best scores, the best first.

    Masked scores come last. Where `k` is a tensor, all positions.

    Not `ops.top_k`: what JAX exports of it cannot be served.
    """
    scores = mask_scores(ops.stop_gradient(scores), mask)
    order = ops.cast(ops.argsort(-scores, axis=-1), "int32")
    # A constant slice, for which XLA does not sort the rest on TensorFlow.
    return order[..., :k] if isinstance(k, numbers.Integral) else order


def validate_solver(solver, epsilon):
    """Raises a `ValueError` for an unknown solver or an `epsilon` <= 0."""
    if solver not in SOLVERS:
        raise ValueError(
            f"`solver` must be one of {SOLVERS}. Received: solver={solver!r}"
        )
    if not epsilon > 0:
        raise ValueError(
            "`epsilon` must be a positive number: it weighs the entropy that "
            "makes the selection soft; take a small one such as 0.03 for a "
            f"nearly hard selection. Received: epsilon={epsilon}"
        )


def validate_coordinate_descent(num_iterations, epsilon_init, epsilon_decay):
    """Raises a `ValueError` for options the iterations cannot run with."""
    if num_iterations < 1:
        raise ValueError(
            "`num_iterations` must be at least 1. "
            f"Received: num_iterations={num_iterations}"
        )
    if not epsilon_init > 0:
        raise ValueError(
            "`epsilon_init` must be a positive number. "
            f"Received: epsilon_init={epsilon_init}"
        )
    if not 0 < epsilon_decay < 1:
        raise ValueError(
            "`epsilon_decay` must lie between 0 and 1. "
            f"Received: epsilon_decay={epsilon_decay}"
        )


def _validate_problem(scores, k, epsilon, solver, mask):
    validate_solver(solver, epsilon)
    if mask is not None and not _compatible_shapes(mask.shape, scores.shape):
        raise ValueError(
            "`mask` must have the shape of `scores`. "
            f"Received: mask.shape={tuple(mask.shape)}, "
            f"scores.shape={tuple(scores.shape)}"
        )
    if not _is_integer(k):
        raise TypeError(
            "`k` must be an integer or an integer tensor with one budget per "
            f"row. Received: k={k!r}"
        )
    if isinstance(k, numbers.Integral):
        n = scores.shape[-1]
        if k < 1 or (n is not None and k > n):
            raise ValueError(
                "`k` must be at least 1 and at most the number of scores in a "
                f"row. Received: k={k}, scores.shape={tuple(scores.shape)}"
            )


def _is_integer(k):
    if hasattr(k, "dtype"):
        return "int" in keras.backend.standardize_dtype(k.dtype)
    return isinstance(k, numbers.Integral) and not isinstance(k, bool)


def _compatible_shapes(first, second):
    return len(first) == len(second) and all(
        a is None or b is None or a == b for a, b in zip(first, second)
    )


def _budget(scores, k, mask):
    """The float budget of each row, of shape `(..., 1)`."""
    budget = ops.cast(k, scores.dtype)
    if len(budget.shape) > 0:
        budget = ops.expand_dims(budget, -1)
    if mask is not None:
        num_real = ops.sum(ops.cast(mask, scores.dtype), -1, keepdims=True)
        budget = ops.minimum(budget, num_real)
    return ops.broadcast_to(budget, ops.shape(scores[..., :1]))


def _exact(scores, budget, epsilon, mask, best):
    """The optimum of eq. 12, `min(1, u * exp(scores / epsilon))`.

    The multiplier `u` solves `sum(min(1, u * w)) = k`, where the saturated
    entries are some of the largest. `best` are the positions of the k or more
    best scores, largest first.
    """
    # Each row's k-th largest score is the reference: relative to it the free
    # weights sum to between 1 and n, so no score scale overflows.
    best_scores = _take(ops.stop_gradient(scores), best)
    rank = ops.cast(ops.arange(ops.shape(best)[-1]), scores.dtype)
    is_kth = ops.equal(rank, budget - 1.0)
    reference = _sum_where(is_kth, best_scores)
    # Entries log(n - k + 1) above the k-th are saturated whatever the rest is.
    num_scores = ops.cast(ops.shape(scores)[-1], scores.dtype)
    ceiling = ops.log(num_scores - budget + 1.0) + 1.0

    def exponential(scores, is_real):
        exponents = ops.minimum((scores - reference) / epsilon, ceiling)
        if is_real is None:
            return ops.exp(exponents)
        zeros = ops.zeros_like(scores)
        # Masked before and after: no infinite gradient, and no weight.
        exponents = ops.where(is_real, exponents, zeros)
        return ops.where(is_real, ops.exp(exponents), zeros)

    unnormalized = exponential(scores, mask)

    # Which entries are saturated needs no gradient: held constant, it gives the
    # true derivative of the optimum.
    constants = ops.stop_gradient(unnormalized)
    largest = exponential(best_scores, rank < budget)
    # What the entries after the k-th sum to, with ties that `best` has too.
    remainder = _sum_where(constants <= 1.0, constants)
    remainder = remainder - _sum_where(largest <= 1.0, largest)
    # The sum of each of the largest and all that come after it.
    sums = ops.flip(ops.cumsum(ops.flip(largest, -1), axis=-1), -1) + remainder
    # With those before it saturated, an entry is too if its share of what is
    # left of k is 1 or more. The k-th stays free: there is always one.
    is_saturated = ops.logical_and(
        (budget - rank) * largest >= sums, rank < budget - 1.0
    )
    multiplier = _multiplier(
        budget, largest, ops.logical_not(is_saturated), remainder
    )
    free = ops.logical_or(constants <= 1.0, constants * multiplier < 1.0)
    weights = _multiplier(budget, unnormalized, free) * unnormalized
    # Not `minimum`: at k = n tied scores have weights of exactly 1, which do
    # not depend on the scores, and the gradient must be 0.
    return ops.where(weights < 1.0, weights, ops.ones_like(weights))


def _take(scores, positions):
    """Scores at positions of their row.

    Not `ops.take_along_axis`: what PyTorch exports of it has one batch size.
    """
    if len(scores.shape) == 2:
        return gather_rows(scores, positions)
    flat_scores = ops.reshape(scores, (-1, ops.shape(scores)[-1]))
    flat_positions = ops.reshape(positions, (-1, ops.shape(positions)[-1]))
    taken = gather_rows(flat_scores, flat_positions)
    return ops.reshape(taken, ops.shape(positions))


def _sum_where(condition, values):
    values = ops.where(condition, values, ops.zeros_like(values))
    return ops.sum(values, axis=-1, keepdims=True)


def _multiplier(budget, values, free, remainder=0.0):
    """`u` such that free entries share what the saturated ones leave of k."""
    free = ops.cast(free, values.dtype)
    num_saturated = ops.sum(1.0 - free, axis=-1, keepdims=True)
    total = ops.sum(values * free, axis=-1, keepdims=True) + remainder
    # A row without a real token has nothing to share and total = 0.
    total = ops.where(total > 0.0, total, ops.ones_like(total))
    return (budget - num_saturated) / total


def _coordinate_descent(
    scores, budget, epsilon, mask, num_iterations, epsilon_init, epsilon_decay
):
    """Block coordinate descent on the dual, eq. 13."""
    if mask is not None:
        # Far below every real score at any epsilon, yet finite.
        scores = ops.where(mask, scores, ops.full_like(scores, -1e9))
        budget = ops.maximum(budget, 1.0)
    log_k = ops.log(budget)
    # Schedule: epsilon_init, then decayed until `epsilon`.
    epsilon_t = max(epsilon_init, epsilon)
    b = ops.zeros_like(scores)
    for _ in range(num_iterations):
        a = epsilon_t * (
            log_k
            - ops.logsumexp((scores + b) / epsilon_t, axis=-1, keepdims=True)
        )
        b = ops.minimum(-scores - a, 0.0)
        epsilon_t = max(epsilon_decay * epsilon_t, epsilon)
    return ops.exp((scores + a + b) / epsilon)
