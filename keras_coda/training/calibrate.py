import contextlib

import keras
import numpy as np
from keras import ops

from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.trained_weights import backbone_of


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
      times with tokens routed at random; the logarithm of the error of the
      output is regressed on the tokens that were routed. The output is the
      last encoder block's, at the prefix tokens, or at all tokens if there are
      none. The scores have a standard deviation of 0.25.

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
    if not isinstance(coda, CodaModel):
        raise TypeError(
            "`coda` must be a model that `keras_coda.coda_wrap` made. "
            f"Received: coda={coda!r}"
        )
    if num_passes < 2:
        raise ValueError(
            "`num_passes` must be at least 2, because random routings of the "
            f"same input are compared. Received: num_passes={num_passes}"
        )
    backbone = backbone_of(coda)
    fitted = {block.name: {} for block in backbone.conditional_blocks}
    if backbone.shortcut_dim is not None:
        for block, moments in observe_updates(backbone, x, batch_size):
            share = _fit_shortcut(block.shortcut, moments, ridge)
            fitted[block.name]["shortcut"] = share
    for block, routing in _observe_routings(
        backbone, x, batch_size, num_passes, np.random.default_rng(seed)
    ):
        fitted[block.name]["router"] = routing.fit(block.router)
    return fitted


# === Shortcuts ===


def observe_updates(backbone, x, batch_size, target=lambda update: update):
    """Moments of each block's hidden states and its updates of them.

    Args:
        target: callable from updates `(m, hidden_dim)` to what is to be
            predicted, `(m, target_dim)`.

    Returns:
        A list of tuples `(block, _Moments)`.
    """
    blocks = backbone.conditional_blocks
    model = _block_states(backbone)
    all_moments = [_Moments() for _ in blocks]
    for batch in _batches(x, batch_size):
        with _dense(blocks):
            states = model(_to_tensors(batch), training=False)
        for block, moments in zip(blocks, all_moments):
            inputs, outputs = map(_to_numpy, states[block.name])
            hidden = _apply(block.block.attention_input, inputs)
            update = outputs - inputs - _apply(block.adapter, hidden)
            chosen = _choosable(backbone, block, batch, hidden)
            moments.add(hidden[chosen], target(update[chosen]))
    return list(zip(blocks, all_moments))


def _block_states(backbone):
    """A model of the inputs and outputs of the blocks, by name."""
    states = {}
    for block in backbone.conditional_blocks:
        # T5's blocks also return the position bias.
        states[block.name] = (
            keras.tree.flatten(block.input)[0],
            keras.tree.flatten(block.output)[0],
        )
    return keras.Model(backbone.input, states)


@contextlib.contextmanager
def _dense(blocks):
    """Computes everything while the context is entered."""
    reduction_factors = [block.reduction_factor for block in blocks]
    try:
        # Not by way of the property: what is compiled stays valid.
        for block in blocks:
            block.reduction_factor = 1
        yield
    finally:
        for block, value in zip(blocks, reduction_factors):
            block.reduction_factor = value


def _choosable(backbone, block, batch, hidden):
    """Which tokens a router may choose: real ones after the prefix."""
    mask = backbone.family.padding_mask(batch)
    chosen = np.ones(hidden.shape[:2], bool)
    if mask is not None:
        chosen = ops.convert_to_numpy(mask).astype(bool)
    chosen[:, : block.router.num_prefix_tokens] = False
    return chosen


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


# === Routers ===


class _RoutingRegression:
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
        kernel = self.deviation * coefficients / np.sqrt(max(variance, 1e-12))
        router.kernel.assign(kernel[:, None])
        explained = coefficients @ self.squares @ coefficients
        size = np.sqrt(max(explained * self.error_square, 1e-12))
        return float(-coefficients @ self.products / size)


def _observe_routings(backbone, x, batch_size, num_passes, rng):
    """Random routings and their errors.

    Returns:
        A list of tuples `(block, _RoutingRegression)` of the blocks that have
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
        _RoutingRegression(block.router.kernel.shape[0]) for block in blocks
    ]
    model = _block_states(backbone)
    last = all_blocks[-1]
    for batch in _batches(x, batch_size):
        tensors = _to_tensors(batch)
        with _dense(all_blocks):
            states = model(tensors, training=False)
        target = _to_numpy(states[last.name][1])
        hidden = [
            _apply(block.block.attention_input, states[block.name][0])
            for block in blocks
        ]
        chosen = [
            _choosable(backbone, block, batch, values)
            for block, values in zip(blocks, hidden)
        ]
        observed = np.ones(target.shape[:2], bool)
        if last.router.num_prefix_tokens:
            observed[:, last.router.num_prefix_tokens :] = False
        else:
            observed = _choosable(backbone, last, batch, target)
        routed, errors = [[] for _ in blocks], []
        for _ in range(num_passes):
            with contextlib.ExitStack() as stack:
                records = [
                    stack.enter_context(_random_routing(block.router, rng))
                    for block in blocks
                ]
                states = model(tensors, training=False)
            output = _to_numpy(states[last.name][1])
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


def _to_tensors(inputs):
    return keras.tree.map_structure(ops.convert_to_tensor, inputs)


def _to_numpy(tensor):
    return ops.convert_to_numpy(ops.stop_gradient(tensor))


def _apply(function, array):
    return _to_numpy(function(ops.convert_to_tensor(array)))


def _batches(x, batch_size):
    if not isinstance(x, dict) and not hasattr(x, "shape"):
        yield from x
        return
    first = keras.tree.flatten(x)[0]
    for start in range(0, len(first), batch_size):
        yield keras.tree.map_structure(
            lambda value: value[start : start + batch_size], x
        )
