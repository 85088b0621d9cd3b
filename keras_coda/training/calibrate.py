import numpy as np

from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.observation import apply
from keras_coda.training.observation import batches
from keras_coda.training.observation import choosable
from keras_coda.training.observation import dense
from keras_coda.training.observation import encoder_of
from keras_coda.training.observation import to_numpy
from keras_coda.training.observation import to_tensors
from keras_coda.training.routing_regression import observe_routings


def calibrate(coda, x, batch_size=32, ridge=1e-3, num_passes=8, seed=0):
    """Fits shortcuts and routers without gradients, by least squares.

    Some hundred unlabelled inputs are enough. For what the model computes at
    `reduction_factor=1`, with its adapters as they are, to be kept at its own
    reduction factor:

    - Each block's shortcut, where there is one (`shortcut_dim`), becomes the
      linear map of its rank that best predicts the block's update of a token
      (reduced-rank ridge regression).
    - Each block's router becomes the linear function of a token that best
      predicts how much routing it helps. Every input is computed `num_passes`
      times with tokens routed at random, the same tokens by all blocks with
      `attention="k_to_k"`; the logarithm of the error of the output is
      regressed on the tokens that were routed. The output is the
      last encoder block's, at the tokens that are always routed, or at all
      tokens if there are none. The scores have a standard deviation of 0.25.

    Fine-tune densely first, then calibrate, then go on at the reduction factor:
    a fit to the pretrained model does not fit the fine-tuned one.

    Args:
        coda: what `keras_coda.coda_wrap` made, a backbone or a task. Its
            shortcuts and the routers of blocks with a reduction factor above
            1 are set, nothing else is changed.
        x: inputs of the backbone: arrays, or an iterable of batches such as a
            `tf.data.Dataset`. A task's preprocessor makes them from raw
            inputs: `task.preprocessor(texts)`.
        batch_size: int. For arrays. Defaults to `32`.
        ridge: float >= 0. Penalty on the shortcuts' squared coefficients, in
            units of the mean variance of what they multiply. Defaults to
            `1e-3`.
        num_passes: int >= 2. Random routings of each input. Defaults to `8`.
        seed: int. Of the random routings. Defaults to `0`.

    Returns:
        A dict from the name of each block to a dict with what was fitted:
        `"shortcut"`, the share of the update's mean square that is explained,
        and `"router"`, the correlation with the logarithm of the error. Both
        on `x` itself. A router whose choice makes no difference is not fitted.

    Raises:
        TypeError: if `coda` was not converted.
        ValueError: if `num_passes` is below 2.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2, shortcut_dim=4)
    >>> images = np.random.normal(size=(16, 8, 8, 3)).astype("float32")
    >>> fitted = keras_coda.training.calibrate(coda, images)
    >>> [sorted(values) for values in fitted.values()]
    [['router', 'shortcut'], ['router', 'shortcut']]
    """
    validate_converted("coda", coda)
    if num_passes < 2:
        raise ValueError(
            "`num_passes` must be at least 2, because random routings of the "
            f"same input are compared. Received: num_passes={num_passes}"
        )
    backbone = backbone_of(coda)
    names = {id(block): name for name, block in backbone.named_blocks.items()}
    fitted = {name: {} for name in backbone.named_blocks}
    if backbone.shortcut_dim is not None:
        for block, moments in observe_updates(backbone, x, batch_size):
            share = _fit_shortcut(block.shortcut, moments, ridge)
            fitted[names[id(block)]]["shortcut"] = share
    for block, routing in observe_routings(
        backbone, x, batch_size, num_passes, np.random.default_rng(seed)
    ):
        fitted[names[id(block)]]["router"] = routing.fit(block.router)
    return fitted


def observe_updates(backbone, x, batch_size, target=lambda update: update):
    """Moments of each block's hidden states and its updates of them.

    Args:
        target: callable from updates `(m, hidden_dim)` to what is to be
            predicted, `(m, target_dim)`.

    Returns:
        A list of tuples `(block, _Moments)`.
    """
    blocks = backbone.conditional_blocks
    encoder = encoder_of(backbone)
    all_moments = [_Moments() for _ in blocks]
    for batch in batches(x, batch_size):
        with dense(blocks), RoutingScope() as scope:
            encoder(to_tensors(batch), training=False)
        for block, moments in zip(blocks, all_moments):
            record = scope.record(block)
            hidden = to_numpy(record.hidden)
            update = to_numpy(record.outputs - record.inputs)
            update = update - apply(block.adapter, hidden)
            chosen = choosable(block, record)
            moments.add(hidden[chosen], target(update[chosen]))
    return list(zip(blocks, all_moments))


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


def ridge_regression(covariance, cross, ridge):
    """Coefficients from the covariances of features, and with targets."""
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
    return float(explained / np.sum(mean_squares))
