import contextlib

import numpy as np
from keras import ops

from keras_coda.analysis.figure import make_figure
from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.training.calibrate import Calibrator
from keras_coda.training.calibration import SPEEDUPS
from keras_coda.training.inputs import make_batches
from keras_coda.training.observation import LEFT_OUT


def plot_budget(
    coda,
    x,
    speedups=(1.5, 2, 2.5, 3),
    score=None,
    batch_size=32,
    **settings,
):
    """Draws what each speedup of a converted model costs in quality.

    `keras_coda.training.calibrate` is run for each speedup. To the left is the
    error that is left, or a score of your own; to the right the share of its
    tokens that each block computes, with the reduction factor in it.

    Args:
        coda: what `keras_coda.coda_wrap` made, fine-tuned. It is left as it
            was.
        x: what is calibrated on, see `keras_coda.training.calibrate`.
        speedups: numbers > 1. Defaults to `(1.5, 2, 2.5, 3)`.
        score: optional function of `coda` that returns a number, such as the
            accuracy on data that was held back. Drawn in the place of the
            error, and as a line for the model at `reduction_factor=1`.
        batch_size: int. For arrays. Defaults to `32`.
        **settings: further arguments of `keras_coda.training.calibrate`.

    Returns:
        A `matplotlib.figure.Figure`, to show or to `savefig`.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `speedups` is empty.
        TypeError, ValueError: as `keras_coda.training.calibrate` does, if a
            speedup is out of reach.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, adapter_dim=1, shortcut_dim=1)
    >>> images = np.random.normal(size=(16, 8, 8, 3)).astype("float32")
    >>> figure = keras_coda.analysis.plot_budget(
    ...     coda, images, speedups=(1.1, 1.3), verbose=0
    ... )
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['error that is left', 'block']
    """
    figure = make_figure("plot_budget", figsize=(10, 4))
    validate_converted("coda", coda)
    speedups = sorted(speedups)
    if not speedups:
        raise ValueError("`speedups` must hold a number. Received: speedups=[]")
    # Once for all speedups, of which the first might use up an iterator.
    batches = make_batches(coda, x, batch_size)
    with _restored(coda):
        set_reduction_factor(coda, 1)
        dense_score = None if score is None else score(coda)
        calibrations, values = [], []
        for speedup in speedups:
            calibrator = Calibrator(coda, batches, **settings)
            calibrations.append(calibrator.run(speedup))
            values.append(
                calibrations[-1].error if score is None else score(coda)
            )

    curve, blocks = figure.subplots(1, 2)
    curve.plot([found.speedup for found in calibrations], values, "o-")
    if dense_score is not None:
        curve.axhline(dense_score, linestyle="--", label="reduction_factor=1")
        curve.legend()
    curve.set_xlabel(SPEEDUPS[calibrations[0].cost])
    curve.set_ylabel("error that is left" if score is None else "score")
    curve.grid(alpha=0.3)
    _draw_blocks(blocks, backbone_of(coda), calibrations)
    return figure


@contextlib.contextmanager
def _restored(coda):
    """Gives the model back its reduction factors and trained weights."""
    factors = backbone_of(coda).reduction_factor
    weights = trained_weights(coda).values()
    values = [ops.convert_to_numpy(weight) for weight in weights]
    try:
        yield
    finally:
        for weight, value in zip(weights, values):
            weight.assign(value)
        set_reduction_factor(coda, factors)


def _draw_blocks(axes, backbone, calibrations):
    """The share of its tokens that each block computes, at each speedup."""
    names = list(backbone.named_blocks)
    factors = np.array([found.reduction_factor for found in calibrations]).T
    axes.imshow(1 / factors, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), factor in np.ndenumerate(factors):
        axes.text(
            column,
            row,
            "left out" if factor >= LEFT_OUT else f"r = {factor:g}",
            ha="center",
            va="center",
            color="white" if factor < 2 else "black",
        )
    axes.set_xticks(
        range(len(calibrations)),
        [f"{found.speedup:.2f}" for found in calibrations],
    )
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("speedup")
    axes.set_ylabel("block")
