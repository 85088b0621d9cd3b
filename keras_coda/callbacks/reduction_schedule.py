from keras_coda.callbacks.reduction_callback import ReductionCallback
from keras_coda.validation import validate_positive_integer


class ReductionSchedule(ReductionCallback):
    """Anneals the number of routed tokens from all of them to the target.

    Over the first `fraction` of the steps of `fit`, k falls linearly from n to
    n / r in `num_stages` stages, where r is the reduction factor that the model
    has when `fit` begins (of each block, if they differ). The rest is trained
    at r. The training step is compiled once a stage and once for the rest.

    The model has its target reduction factor again when `fit` ends, also if it
    is interrupted. `evaluate` and the validation of `fit` run at the reduction
    factor of the moment. With `keras.callbacks.BackupAndRestore` a resumed
    `fit` goes on at the stage that it was in.

    Args:
        fraction: float in [0, 1]. Share of the steps that are annealed.
            Defaults to `0.15`; the paper anneals 10% to 20%.
        num_stages: int >= 1. Number of annealed stages, of which the first is
            dense. Defaults to `5`.
        total_steps: optional int. The steps of the whole `fit`, for datasets
            of unknown length.
        verbose: 0 or 1. Whether to print each stage. Defaults to `1`.

    Raises:
        ValueError: if an argument is out of range, or, when `fit` begins, if
            the number of steps is unknown.

    Example:

    >>> model = keras.Sequential([
    ...     keras.Input((8, 16)),
    ...     keras_coda.layers.ConditionalTransformerBlock(
    ...         keras_coda.layers.TransformerBlock(2, intermediate_dim=32)
    ...     ),
    ... ])
    >>> model.compile(loss="mse")
    >>> schedule = keras_coda.callbacks.ReductionSchedule(
    ...     fraction=0.5, num_stages=2, verbose=0
    ... )
    >>> x = np.ones((8, 8, 16))
    >>> history = model.fit(
    ...     x, x, batch_size=1, callbacks=[schedule], verbose=0
    ... )
    >>> model.layers[0].reduction_factor
    4

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), section 3.3 and
        appendix B.
    """

    def __init__(
        self, fraction=0.15, num_stages=5, total_steps=None, verbose=1
    ):
        super().__init__(total_steps=total_steps, verbose=verbose)
        if not 0 <= fraction <= 1:
            raise ValueError(
                "`fraction` must lie between 0 and 1: the share of the steps "
                f"in which k is annealed. Received: fraction={fraction}"
            )
        self.fraction = fraction
        self.num_stages = validate_positive_integer("num_stages", num_stages)

    @property
    def num_compilations(self):
        """How often the training step is compiled, at most."""
        return self.num_stages + 1

    def stage_at(self, step):
        annealed_steps = self.fraction * self._num_steps
        if step >= annealed_steps:
            return self.num_stages
        return int(step / annealed_steps * self.num_stages)

    def reduction_factors_of(self, stage):
        if stage == self.num_stages:
            return list(self._targets)
        progress = stage / self.num_stages
        # k / n falls linearly from 1 to 1 / r.
        return [
            1 / (1 - progress * (1 - 1 / target)) if stage else 1
            for target in self._targets
        ]
