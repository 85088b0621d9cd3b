"""Shortcuts, and routers of what shortcuts miss, by least squares."""

import numpy as np

from keras_coda.training.block_chain import BlockChain
from keras_coda.training.observation import apply
from keras_coda.training.observation import choosable
from keras_coda.training.observation import dense
from keras_coda.training.observation import routed_tokens
from keras_coda.training.observation import to_numpy

# Of the scores of a fitted router: soft enough to be trained, at an epsilon of
# 0.03.
DEVIATION = 0.25


def fit_blocks(backbone, inputs, ridge, in_sequence, fits_routers):
    """Fits shortcuts, block after block.

    A shortcut predicts what a token lacks: the dense model's state behind the
    block, less the token's own state before it.

    Args:
        backbone: a converted backbone, with the reduction factors to fit for.
        inputs: list of batches, as tensors.
        ridge: float. Penalty of the shortcuts.
        in_sequence: bool. Whether blocks are fitted to the states that the
            fitted blocks before them make, and to the tokens that are left out
            there; or to all states of the dense model.
        fits_routers: bool. Whether routers are fitted too, to route the tokens
            of which shortcuts miss most.

    Returns:
        A dict from the id of each block that was fitted to a dict of the share
        `"shortcut"` and the correlation `"router"`, see `calibrate`.
    """
    target_chain = BlockChain(backbone, inputs)
    chain = BlockChain(backbone, inputs) if in_sequence else target_chain
    fitted = {}
    for block in backbone.conditional_blocks:
        with dense([block]):
            targets = [x.outputs for x in target_chain.records(block)]
        if block.reduction_factor > 1 or not in_sequence:
            records = list(chain.records(block, known=targets))
            fit = _BlockFit(block, records, targets)
            fitted[id(block)] = fit.solve(ridge, in_sequence, fits_routers)
        target_chain.advance(block, targets)
        if in_sequence:
            chain.advance(block, [x.outputs for x in chain.records(block)])
    return fitted


class _BlockFit:
    """What one block reads, and what its tokens lack, batch by batch."""

    def __init__(self, block, records, targets):
        self.block, self.records = block, records
        self.hidden = [_float32(record.hidden) for record in records]
        self.missing = [
            _float32(target) - _float32(record.inputs) - adapted
            for target, record, adapted in zip(
                targets, records, self._apply(block.adapter)
            )
        ]
        self.choosable = [choosable(block, record) for record in records]

    def solve(self, ridge, left_out_alone, fits_router):
        block, fitted = self.block, {}
        if block.shortcut is not None:
            fitted["shortcut"] = self._fit_shortcut(ridge, self.choosable)
        if fits_router and block.router.kernel is not None:
            fitted["router"] = self._fit_router()
        if block.shortcut is not None and left_out_alone:
            left_out = self._left_out()
            if any(chosen.any() for chosen in left_out):
                fitted["shortcut"] = self._fit_shortcut(ridge, left_out)
        return fitted

    def _apply(self, layer):
        return [np.asarray(apply(layer, x), "float32") for x in self.hidden]

    def _left_out(self):
        """Tokens that could be routed, and are not."""
        left_out = []
        for record, chosen in zip(self.records, self.choosable):
            routing = self.block.choose(
                record.hidden, record.padding_mask, record.pinned
            )
            left_out.append(chosen & ~routed_tokens(record, routing))
        return left_out

    def _fit_shortcut(self, ridge, tokens):
        moments = Moments()
        for hidden, missing, chosen in zip(self.hidden, self.missing, tokens):
            moments.add(hidden[chosen], missing[chosen])
        return fit_shortcut(self.block.shortcut, moments, ridge)

    def _fit_router(self):
        estimates = [0.0] * len(self.hidden)
        if self.block.shortcut is not None:
            estimates = self._apply(self.block.shortcut)
        moments = Moments()
        for hidden, missing, estimate, chosen in zip(
            self.hidden, self.missing, estimates, self.choosable
        ):
            errors = np.sum((missing - estimate) ** 2, axis=-1, keepdims=True)
            # Logarithms, because the errors are far from normal.
            moments.add(hidden[chosen], np.log(errors[chosen] + 1e-9))
        _, mean, covariance, cross, squares = moments.normalized()
        coefficients = ridge_regression(covariance, cross, 1e-2)
        variance = float(np.sum(coefficients * (covariance @ coefficients)))
        scale = DEVIATION / np.sqrt(max(variance, 1e-30))
        self.block.router.kernel.assign(scale * coefficients)
        explained = _explained(coefficients, covariance, cross)
        total = max(float(np.sum(squares - mean**2)), 1e-30)
        return float(np.sqrt(max(explained, 0.0) / total))


class Moments:
    """Sums over tokens, in float64, that least squares needs."""

    def __init__(self):
        self.count = 0
        self.sums = None

    def add(self, features, targets):
        features = np.asarray(features, "float64")
        targets = np.asarray(targets, "float64")
        sums = (
            features.sum(0),
            targets.sum(0),
            features.T @ features,
            features.T @ targets,
            np.sum(targets**2, axis=0),
        )
        self.count += len(features)
        if self.sums is None:
            self.sums = sums
        else:
            self.sums = tuple(map(np.add, self.sums, sums))

    def normalized(self):
        """Statistics of features (f) and targets (t) for each token.

        Returns:
            A tuple of the means of f and t, the covariance of f, that of f and
            t, and the mean squares of t.
        """
        features, targets, squares, products, target_squares = (
            value / self.count for value in self.sums
        )
        covariance = squares - np.outer(features, features)
        cross = products - np.outer(features, targets)
        return features, targets, covariance, cross, target_squares


def ridge_regression(covariance, cross, ridge):
    """Coefficients from the covariances of features, and with targets."""
    penalty = ridge * np.trace(covariance) / len(covariance)
    return np.linalg.solve(
        covariance + penalty * np.eye(len(covariance)), cross
    )


def fit_shortcut(shortcut, moments, ridge):
    """Fits a shortcut by reduced-rank ridge regression.

    Returns:
        The share of the targets' mean square that it explains.
    """
    mean, target_mean, covariance, cross, mean_squares = moments.normalized()
    coefficients = ridge_regression(covariance, cross, ridge)
    # The directions in which the predicted updates vary most.
    predicted = coefficients.T @ covariance @ coefficients
    _, directions = np.linalg.eigh(predicted)
    directions = directions[:, -shortcut.adapter_dim :]
    # A rank above the hidden dimension has nothing more to offer.
    excess = shortcut.adapter_dim - directions.shape[1]
    down = np.pad(coefficients @ directions, [(0, 0), (0, excess)])
    up = np.pad(directions.T, [(0, excess), (0, 0)])
    shortcut.down.kernel.assign(down)
    shortcut.down.bias.assign(np.zeros(len(up)))
    shortcut.up.kernel.assign(up)
    shortcut.up.bias.assign(target_mean - mean @ down @ up)
    explained = np.sum(target_mean**2) + _explained(
        down @ up, covariance, cross
    )
    total = np.sum(mean_squares)
    # Of nothing, all is explained: a block may have reached a fixed point.
    return float(explained / total) if total > 0 else 1.0


def _explained(coefficients, covariance, cross):
    """The variance that linear coefficients explain."""
    return 2 * np.sum(cross * coefficients) - np.sum(
        coefficients * (covariance @ coefficients)
    )


def _float32(tensor):
    return np.asarray(to_numpy(tensor), "float32")
