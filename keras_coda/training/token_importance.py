"""How much the output depends on each token that a block computes."""

import keras
import numpy as np
from keras import ops

from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Rows
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.least_squares import Moments
from keras_coda.training.least_squares import explained_variance
from keras_coda.training.least_squares import ridge_regression
from keras_coda.training.observation import choosable
from keras_coda.training.observation import to_float32
from keras_coda.training.observed import log_softmax

# Of the scores of a fitted router: soft enough to be trained, at an epsilon of
# 0.03.
DEVIATION = 0.25
# Of the outputs' distribution: a model that is sure of itself has no slope.
TEMPERATURE = 2.0


class TokenImportance:
    """The output's error if a block left out a token, to second order.

    With a weight m of each token and block, 1 where the token is routed, the
    divergence of the outputs from those at m = 1 begins with half of Fisher's
    information, the mean of `(d log p(y) / dm)**2` over y drawn from the
    outputs' distribution p. For outputs that are no logits p is normal, with
    variance 1. One gradient gives it for all blocks and tokens.

    Args:
        blocks: list of conditional blocks.
        models: list of the models that run them, with nothing to train.
        rng: a NumPy generator, for the y.
    """

    def __init__(self, blocks, models, rng):
        self.blocks, self.models, self.rng = blocks, models, rng
        self.slopes = None

    def __call__(self, observed):
        """Importances, each estimated from one y.

        Args:
            observed: the `Observed` of what is read, of one batch.

        Returns:
            A list with an array `(batch_size, n)` for each block.
        """
        records = [observed.scope.record(block) for block in self.blocks]
        shapes = [tuple(record.hidden.shape[:2]) for record in records]
        if self.slopes is None or self.slopes.shapes != shapes:
            self.slopes = _Slopes(observed, self.blocks, self.models, shapes)
        (batch,) = observed.inputs
        return [x**2 for x in self.slopes.of(batch, self.draw(observed))]

    def draw(self, observed):
        """The slope of log p(y) over the outputs, for drawn y."""
        slopes = []
        for target, weights, scale in zip(
            observed.targets[0], observed.weights[0], observed.scales
        ):
            if observed.are_logits:
                logits = target / TEMPERATURE
                # The largest of these is drawn with probability p.
                noise = self.rng.gumbel(size=logits.shape)
                drawn = np.argmax(logits + noise, axis=-1)[..., None]
                slope = -np.exp(log_softmax(logits))
                reached = np.take_along_axis(slope, drawn, axis=-1) + 1.0
                np.put_along_axis(slope, drawn, reached, axis=-1)
            else:
                slope = self.rng.normal(size=target.shape) / scale**0.5
            slopes.append((slope * weights[..., None]).astype("float32"))
        return slopes


class _Slopes(keras.Model):
    """Slopes of what is read over the weights of the tokens in each block.

    Keras computes gradients in its training step alone: a step of gradient
    descent at learning rate 1 moves weights by their gradient.
    """

    def __init__(self, observed, blocks, models, shapes):
        # Whatever the policy is: slopes would be rounded with what is computed.
        super().__init__(name="slopes", dtype="float32")
        self.observed, self.models, self.shapes = observed, models, shapes
        # Within a function, so that they are tracked in the models alone.
        self.blocks = lambda: blocks
        self.moves = [
            self.add_weight(
                shape=shape, initializer="zeros", dtype="float32", name=f"{i}"
            )
            for i, shape in enumerate(shapes)
        ]
        # A scaled loss would have scaled slopes.
        self.compile(keras.optimizers.SGD(1.0), auto_scale_loss=False)

    def call(self, inputs):
        batch, slopes = inputs
        weights = {
            id(block): 1.0 + moves
            for block, moves in zip(self.blocks(), self.moves)
        }

        def choose(block, *args):
            if id(block) in weights:
                return BlockRouting(weights[id(block)], Rows())

        with RoutingScope(choose) as scope:
            outputs = self.observed.run(batch)
        read = self.observed.states(outputs, scope)
        total = sum(
            ops.sum(ops.cast(states, "float32") * slope)
            for states, slope in zip(read, slopes)
        )
        # Each has a gradient, also of a block that nothing is read of.
        return total + sum(0.0 * ops.sum(moves) for moves in self.moves)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        return y_pred

    def of(self, batch, slopes):
        """For a batch, and slopes of log p(y) over what is read of it."""
        for moves in self.moves:
            moves.assign(np.zeros(moves.shape, "float32"))
        self.train_on_batch((batch, slopes))
        return [-ops.convert_to_numpy(moves) for moves in self.moves]


def fit_routers(backbone, inputs, observe, models, rng):
    """Fits routers to the importance of tokens.

    A router predicts the logarithm of a token's importance, relative to the
    mean of its sequence, from what the router reads.

    Args:
        backbone: a converted backbone.
        inputs: list of batches, as tensors.
        observe: function of such a list that returns the `Observed` of what is
            read.
        models: list of the models that run the backbone, with nothing to train.
        rng: a NumPy generator.

    Returns:
        A dict from the id of each block that was fitted to the correlation of
        its router's scores.
    """
    blocks = [
        block
        for block in backbone.conditional_blocks
        if block.router.kernel is not None
    ]
    if not blocks:
        return {}
    importance = TokenImportance(blocks, models, rng)
    moments = [Moments() for _ in blocks]
    for batch in inputs:
        observed = observe([batch])
        for own, block, values in zip(moments, blocks, importance(observed)):
            record = observed.scope.record(block)
            chosen = choosable(block, record)
            if not np.any(values[chosen]):
                continue
            # Logarithms, because importances are far from normal.
            logs = np.log(values + 1e-4 * np.mean(values[chosen]))
            own.add(
                *(
                    _centered(np.asarray(x, "float32"), chosen)
                    for x in (to_float32(record.hidden), logs[..., None])
                )
            )
    return {
        id(block): _fit(block.router, own)
        for block, own in zip(blocks, moments)
        # Where nothing matters, or nothing can be chosen.
        if own.count
    }


def set_scores(router, coefficients, variance):
    """Gives a router coefficients of scores, of that variance as they are."""
    scale = DEVIATION / np.sqrt(max(variance, 1e-30))
    router.kernel.assign(scale * coefficients)


def _centered(values, chosen):
    """Chosen tokens, less the mean of those of their sequence."""
    weights = chosen[..., None]
    count = np.maximum(weights.sum(axis=1, keepdims=True), 1)
    means = (values * weights).sum(axis=1, keepdims=True) / count
    return (values - means)[chosen]


def _fit(router, moments):
    """Fits a router to a number for each token.

    Returns:
        The correlation of its scores with the number.
    """
    _, mean, covariance, cross, squares = moments.normalized()
    coefficients = ridge_regression(covariance, cross, 1e-2)
    variance = float(np.sum(coefficients * (covariance @ coefficients)))
    set_scores(router, coefficients, variance)
    explained = explained_variance(coefficients, covariance, cross)
    total = max(float(np.sum(squares - mean**2)), 1e-30)
    return float(np.sqrt(max(explained, 0.0) / total))
