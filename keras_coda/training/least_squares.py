"""Linear regression on tokens, batch by batch."""

import numpy as np


class Moments:
    """Sums over tokens that least squares needs.

    In float32 within a batch, which is twice as fast, and in float64 over
    batches.
    """

    def __init__(self):
        self.count = 0
        self.sums = None

    def add(self, features, targets):
        sums = (
            features.sum(0),
            targets.sum(0),
            features.T @ features,
            features.T @ targets,
            np.sum(targets**2, axis=0),
        )
        sums = tuple(np.asarray(value, "float64") for value in sums)
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


def explained_variance(coefficients, covariance, cross):
    """The variance that linear coefficients explain."""
    return 2 * np.sum(cross * coefficients) - np.sum(
        coefficients * (covariance @ coefficients)
    )
