"""Which tokens matter to the output, found by routing tokens at random."""

import contextlib

import numpy as np
from keras import ops

from keras_coda.training.block_states import apply
from keras_coda.training.block_states import batches
from keras_coda.training.block_states import block_states
from keras_coda.training.block_states import choosable
from keras_coda.training.block_states import dense
from keras_coda.training.block_states import to_numpy
from keras_coda.training.block_states import to_tensors


class RoutingRegression:
    """Regression of the output's error on the tokens that were routed."""

    # The errors are noisy: on real data 3 to 100 did about as well, 0.3 worse.
    ridge = 30.0
    # Of the scores: soft enough to be trained, at an epsilon of 0.03.
    deviation = 0.25

    def __init__(self, hidden_dim):
        shape = (hidden_dim, hidden_dim)
        self.squares, self.covariance = np.zeros(shape), np.zeros(shape)
        self.products = np.zeros(hidden_dim)
        self.num_tokens, self.error_square = 0, 0.0

    def add(self, hidden, routed, chosen, errors):
        """Adds the passes over a batch.

        Args:
            hidden: array of shape `(batch_size, n, hidden_dim)`.
            routed: bool array of shape `(num_passes, batch_size, n)`.
            chosen: bool array `(batch_size, n)`, what could be routed.
            errors: array of shape `(num_passes, batch_size)`.
        """
        chosen = chosen[..., None]
        count = np.maximum(chosen.sum(axis=1, keepdims=True), 1)
        hidden = np.asarray(hidden, "float64") * chosen
        hidden = chosen * (hidden - hidden.sum(1, keepdims=True) / count)
        sums = np.einsum("pbn,bnd->pbd", routed.astype("float64"), hidden)
        # What differs between the passes over the same input.
        sums = (sums - sums.mean(axis=0)).reshape((-1, hidden.shape[-1]))
        errors = (errors - errors.mean(axis=0)).reshape(-1)
        self.squares += sums.T @ sums
        self.products += sums.T @ errors
        self.error_square += np.sum(errors**2)
        tokens = hidden.reshape((-1, hidden.shape[-1]))
        self.covariance += tokens.T @ tokens
        self.num_tokens += int(chosen.sum())

    def fit(self, router):
        dim = len(self.products)
        penalty = self.ridge * np.trace(self.squares) / dim
        # Tokens whose routing lowers the error score high.
        coefficients = -np.linalg.solve(
            self.squares + penalty * np.eye(dim), self.products
        )
        variance = coefficients @ self.covariance @ coefficients
        variance /= max(self.num_tokens, 1)
        kernel = self.deviation * coefficients / np.sqrt(max(variance, 1e-30))
        router.kernel.assign(kernel[:, None])
        explained = coefficients @ self.squares @ coefficients
        size = np.sqrt(max(explained * self.error_square, 1e-30))
        return float(-coefficients @ self.products / size)


def observe_routings(backbone, x, batch_size, num_passes, rng):
    """Random routings and their errors.

    With `attention="k_to_k"` all blocks route the same tokens: a token that the
    blocks before left out would have nothing to tell the others.

    Returns:
        A list of tuples `(block, RoutingRegression)` of the blocks that have
        something to learn.
    """
    all_blocks = backbone.conditional_blocks
    blocks = [
        block
        for block in all_blocks
        if block.router.kernel is not None and block.reduction_factor > 1
    ]
    if not blocks:
        return []
    regressions = [
        RoutingRegression(block.router.kernel.shape[0]) for block in blocks
    ]
    model = block_states(backbone)
    last = all_blocks[-1]
    for batch in batches(x, batch_size):
        tensors = to_tensors(batch)
        with dense(all_blocks):
            states = model(tensors, training=False)
        target = to_numpy(states[last.name][1])
        hidden = [
            apply(block.block.attention_input, states[block.name][0])
            for block in blocks
        ]
        chosen = [
            choosable(backbone, block, batch, values)
            for block, values in zip(blocks, hidden)
        ]
        observed = choosable(backbone, last, batch, target)
        if last.router.num_prefix_tokens:
            # What heads pool.
            observed = np.zeros_like(observed)
            observed[:, : last.router.num_prefix_tokens] = True
        routed, errors = [[] for _ in blocks], []
        for _ in range(num_passes):
            generators = [rng] * len(blocks)
            if backbone.attention == "k_to_k":
                seed = rng.integers(2**32)
                generators = [np.random.default_rng(seed) for _ in blocks]
            with contextlib.ExitStack() as stack:
                records = [
                    stack.enter_context(
                        _random_routing(block.router, generator)
                    )
                    for block, generator in zip(blocks, generators)
                ]
                states = model(tensors, training=False)
            output = to_numpy(states[last.name][1])
            errors.append(_log_error(output, target, observed))
            for record, all_routed in zip(records, routed):
                all_routed.append(record["routed"])
        for index, regression in enumerate(regressions):
            regression.add(
                hidden[index],
                np.stack(routed[index]) & chosen[index],
                chosen[index],
                np.stack(errors),
            )
    return [
        pair
        for pair in zip(blocks, regressions)
        # Where nothing, or everything, could be chosen there is no difference.
        if np.any(pair[1].products)
    ]


@contextlib.contextmanager
def _random_routing(router, rng):
    """Lets a router choose at random, and records what it chooses."""
    record = {}
    call = router.call

    def random_call(inputs, mask=None):
        batch_size, length = inputs.shape[:2]
        num_routed = router.routed_length(length)
        if num_routed == length:
            record["routed"] = np.ones((batch_size, length), bool)
            return call(inputs, mask=mask)
        scores = rng.random((batch_size, length))
        real = np.ones((batch_size, length), bool)
        if mask is not None:
            real = ops.convert_to_numpy(mask).astype(bool)
        scores[~real] -= 1.0
        scores[:, : router.num_prefix_tokens] += 2.0
        indices = np.argsort(-scores, axis=1)[:, :num_routed]
        record["routed"] = np.zeros((batch_size, length), bool)
        np.put_along_axis(record["routed"], indices, True, axis=1)
        weights = np.take_along_axis(real, indices, axis=1)
        return (
            ops.convert_to_tensor(weights.astype("float32")),
            ops.convert_to_tensor(indices.astype("int32")),
        )

    router.call = random_call
    try:
        yield record
    finally:
        del router.call


def _log_error(output, target, observed):
    """Logarithm of the squared error of each sequence, relative."""
    observed = observed[..., None]
    error = np.sum(observed * (output - target) ** 2, axis=(1, 2))
    scale = np.sum(observed * target**2, axis=(1, 2))
    return np.log((error + 1e-12) / (scale + 1e-12) + 1e-6)
