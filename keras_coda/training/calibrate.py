import keras
import numpy as np
from keras import ops

from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.trained_weights import backbone_of


def calibrate(coda, x, batch_size=32, ridge=1e-3):
    """Fits routers and shortcuts to the dense blocks, by least squares.

    A start for fine-tuning, or for `keras_coda.training.align`, that takes one
    or two passes without gradients over some unlabelled inputs:

    - Each block's shortcut, where there is one (`shortcut_dim`), becomes the
      linear map of its rank that best predicts the block's update of a token
      (reduced-rank ridge regression).
    - Each block's router becomes the linear function that best predicts the
      size of what a token misses if it is not routed: its update, or what the
      shortcut leaves of it. So the router starts with the tokens that
      the block would change most. The scores have mean square 1 at most.

    The updates are those at `reduction_factor=1`, with the adapters as they
    are, over real tokens. A few hundred sequences are enough.

    Args:
        coda: what `keras_coda.coda_wrap` made, a backbone or a task. Its
            routers and shortcuts are set, nothing else is changed.
        x: inputs of the backbone: arrays, or an iterable of batches such as a
            `tf.data.Dataset`. A task's preprocessor makes them from raw
            inputs: `task.preprocessor(texts)`.
        batch_size: int. For arrays. Defaults to `32`.
        ridge: float >= 0. Penalty on the squared coefficients, in units of the
            mean variance of what they multiply. Defaults to `1e-3`.

    Returns:
        A dict from the name of each block to a dict with the share of the
        mean square that is explained: `"router"`, of the size about its mean,
        and `"shortcut"`, of the update. The inputs' own, not held out.

    Raises:
        TypeError: if `coda` was not converted.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2, shortcut_dim=4)
    >>> images = np.random.normal(size=(16, 8, 8, 3)).astype("float32")
    >>> explained = keras_coda.training.calibrate(coda, images)
    >>> [sorted(shares) for shares in explained.values()]
    [['router', 'shortcut']]
    """
    if not isinstance(coda, CodaModel):
        raise TypeError(
            "`coda` must be a model that `keras_coda.coda_wrap` made. "
            f"Received: coda={coda!r}"
        )
    backbone = backbone_of(coda)
    blocks = backbone.conditional_blocks
    reduction_factors = [block.reduction_factor for block in blocks]
    explained = {block.name: {} for block in blocks}
    try:
        # Not by way of the property: what is compiled stays valid.
        for block in blocks:
            block.reduction_factor = 1
        observe = _Observer(backbone, x, batch_size)
        if backbone.shortcut_dim is not None:
            moments = observe(lambda block, hidden, update: update)
            for block, moment in zip(blocks, moments):
                share = _fit_shortcut(block.shortcut, moment, ridge)
                explained[block.name]["shortcut"] = share
        if any(block.router.kernel is not None for block in blocks):
            moments = observe(_missed_size)
            for block, moment in zip(blocks, moments):
                share = _fit_router(block.router, moment, ridge)
                explained[block.name]["router"] = share
    finally:
        for block, value in zip(blocks, reduction_factors):
            block.reduction_factor = value
    return explained


class _Observer:
    """Passes over the inputs, and the blocks' updates of their tokens."""

    def __init__(self, backbone, x, batch_size):
        self.family = backbone.family
        self.blocks = backbone.conditional_blocks
        self.x, self.batch_size = x, batch_size
        states = {}
        for block in self.blocks:
            inputs = keras.tree.flatten(block.input)[0]
            # T5's blocks also return the position bias.
            outputs = keras.tree.flatten(block.output)[0]
            states[block.name] = (inputs, outputs)
        self.model = keras.Model(backbone.input, states)

    def __call__(self, target):
        """Moments of each block's hidden states and of a target.

        Args:
            target: callable from a block, hidden states `(m, hidden_dim)` and
                updates of the same shape, to an array `(m, target_dim)`.

        Returns:
            A list with a `_Moments` for each block.
        """
        all_moments = [_Moments() for _ in self.blocks]
        for batch in _batches(self.x, self.batch_size):
            states = self.model.predict_on_batch(batch)
            mask = self.family.padding_mask(batch)
            for block, moments in zip(self.blocks, all_moments):
                inputs, outputs = states[block.name]
                hidden = _apply(block.block.attention_input, inputs)
                update = outputs - inputs - _apply(block.adapter, hidden)
                real = np.ones(hidden.shape[:2], bool)
                if mask is not None:
                    real = ops.convert_to_numpy(mask).astype(bool)
                # Prefix tokens are routed whatever their score.
                real[:, : block.router.num_prefix_tokens] = False
                hidden, update = hidden[real], update[real]
                moments.add(hidden, target(block, hidden, update))
        return all_moments


class _Moments:
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


def _regress(covariance, cross, ridge):
    penalty = ridge * np.trace(covariance) / len(covariance)
    return np.linalg.solve(
        covariance + penalty * np.eye(len(covariance)), cross
    )


def _explained(coefficients, covariance, cross):
    """The variance that linear coefficients explain."""
    return 2 * np.sum(cross * coefficients) - np.sum(
        coefficients * (covariance @ coefficients)
    )


def _fit_shortcut(shortcut, moments, ridge):
    mean, target_mean, covariance, cross, mean_squares = moments.normalized()
    coefficients = _regress(covariance, cross, ridge)
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
    return float(explained / np.sum(mean_squares))


def _fit_router(router, moments, ridge):
    _, mean, covariance, cross, mean_squares = moments.normalized()
    coefficients = _regress(covariance, cross, ridge)
    variance = max(float(mean_squares[0] - mean[0] ** 2), 1e-12)
    # A constant in the scores would change nothing.
    router.kernel.assign(coefficients / np.sqrt(variance))
    return float(_explained(coefficients, covariance, cross) / variance)


def _missed_size(block, hidden, update):
    """How large the update is, or what the shortcut leaves of it."""
    if block.shortcut is not None:
        update = update - _apply(block.shortcut, hidden)
    return np.linalg.norm(update, axis=-1, keepdims=True)


def _apply(function, array):
    outputs = function(ops.convert_to_tensor(array))
    return ops.convert_to_numpy(ops.stop_gradient(outputs))


def _batches(x, batch_size):
    if not isinstance(x, dict) and not hasattr(x, "shape"):
        yield from x
        return
    first = keras.tree.flatten(x)[0]
    for start in range(0, len(first), batch_size):
        yield keras.tree.map_structure(
            lambda value: value[start : start + batch_size], x
        )
