"""Which tokens matter to the output, found by routing tokens at random."""

import numpy as np
from keras import ops

from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Rows
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.observation import choosable
from keras_coda.training.observation import to_numpy
from keras_coda.training.token_importance import set_scores


class RoutingRegression:
    """Regression of the output's error on the tokens that were routed."""

    # The errors are noisy: on real data 3 to 100 did about as well, 0.3 worse.
    ridge = 30.0

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
        set_scores(router, coefficients[:, None], variance)
        explained = coefficients @ self.squares @ coefficients
        size = np.sqrt(max(explained * self.error_square, 1e-30))
        return float(-coefficients @ self.products / size)


def fit_routers(backbone, inputs, observe, num_passes, rng):
    """Fits routers to random routings and their errors, for `"k_to_k"`.

    All blocks route the same tokens: one that the blocks before left out would
    have nothing to tell the others.

    Args:
        backbone: a converted backbone, with the reduction factors to fit for.
        inputs: list of batches, as tensors.
        observe: function of such a list that returns the `Observed` of what is
            read.
        num_passes: int. Random routings of each batch.
        rng: a NumPy generator.

    Returns:
        A dict from the id of each block that was fitted to the correlation
        `"router"`, see `calibrate`.
    """
    blocks = [
        block
        for block in backbone.conditional_blocks
        if block.router.kernel is not None and block.reduction_factor > 1
    ]
    if not blocks:
        return {}
    regressions = {
        id(block): RoutingRegression(block.router.kernel.shape[0])
        for block in blocks
    }
    for batch in inputs:
        observed = observe([batch])
        routed, errors = [], []
        for _ in range(num_passes):
            choice = _RandomChoice(regressions, rng.integers(2**32))
            with RoutingScope(choice) as scope:
                outputs = observed.run(batch)
            routed.append(choice.routed)
            errors.append(observed.errors(0, outputs, scope))
        # For each stack (num_passes, batch_size); frames are more than videos.
        errors = [np.log(np.stack(own) + 1e-6) for own in zip(*errors)]
        for block in blocks:
            record = observed.scope.record(block)
            chosen = choosable(block, record)
            regressions[id(block)].add(
                to_numpy(record.hidden),
                np.stack([tokens[id(block)] for tokens in routed]) & chosen,
                chosen,
                errors[observed.stack_of(block)],
            )
    return {
        id(block): regressions[id(block)].fit(block.router)
        for block in blocks
        # Where nothing, or everything, could be chosen there is no difference.
        if np.any(regressions[id(block)].products)
    }


class _RandomChoice:
    """Routes at random in a `RoutingScope`, and keeps what it routed.

    Args:
        block_ids: the ids of the blocks to choose for, the same tokens for all.
        seed: int.
    """

    def __init__(self, block_ids, seed):
        self.block_ids, self.seed = block_ids, seed
        # From the id of each block to a bool array (batch_size, n).
        self.routed = {}

    def __call__(self, block, hidden, padding_mask, pinned):
        if id(block) not in self.block_ids:
            return None
        router = block.router
        batch_size, length = hidden.shape[:2]
        num_routed = router.routed_length(length)
        if num_routed == length:
            self.routed[id(block)] = np.ones((batch_size, length), bool)
            return None
        scores = np.random.default_rng(self.seed).random((batch_size, length))
        real = np.ones((batch_size, length), bool)
        if padding_mask is not None:
            real = to_numpy(padding_mask).astype(bool)
        scores[~real] -= 1.0
        scores += 2.0 * to_numpy(
            router.pinned_tokens(hidden, padding_mask, pinned)
        )
        indices = np.argsort(-scores, axis=1)[:, :num_routed]
        routed = np.zeros((batch_size, length), bool)
        np.put_along_axis(routed, indices, True, axis=1)
        self.routed[id(block)] = routed
        weights = np.take_along_axis(real, indices, axis=1)
        return BlockRouting(
            ops.convert_to_tensor(weights.astype("float32")),
            Rows(ops.convert_to_tensor(indices.astype("int32"))),
        )
