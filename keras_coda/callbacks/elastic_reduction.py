import random

from keras_coda.callbacks.reduction_callback import ReductionCallback
from keras_coda.validation import validate_positive_integer
from keras_coda.validation import validate_reduction_factor


class ElasticReduction(ReductionCallback):
    """Trains one model for several reduction factors.

    Every `steps_per_stage` steps the reduction factor is drawn anew, so that
    the trained model can be deployed at any of them by setting its
    `reduction_factor`. The training step is compiled once for each.

    With `sandwich`, two of three draws are the largest and the smallest in
    turn, between which the others lie. To train on what the model computes at
    `reduction_factor=1` in the place of labels, pass the callback to
    `keras_coda.training.align` with `target="fine_tuned"`.

    The model has the reduction factor it had before when `fit` ends, also if it
    is interrupted.

    Args:
        reduction_factors: list of numbers >= 1 to draw from.
        steps_per_stage: int >= 1. Steps between draws. Defaults to `1`.
        seed: int. Of the draws. Defaults to `0`.
        sandwich: bool. Whether to draw by the sandwich rule. Defaults to
            `False`.
        total_steps: optional int. The steps of the whole `fit`, for datasets
            of unknown length.
        verbose: 0 or 1. Whether to print each draw. Defaults to `0`.

    Raises:
        ValueError: if an argument is out of range or the list is empty.

    Example:

    >>> elastic = keras_coda.callbacks.ElasticReduction([1, 2, 3, 5])
    >>> elastic.num_compilations
    4

    Reference:
        The sandwich rule:
        [Yu and Huang, 2019](https://arxiv.org/abs/1903.05134), section 3.2,
        with the three in consecutive steps and not in one.
    """

    def __init__(
        self,
        reduction_factors,
        steps_per_stage=1,
        seed=0,
        sandwich=False,
        total_steps=None,
        verbose=0,
    ):
        super().__init__(total_steps=total_steps, verbose=verbose)
        if not reduction_factors:
            raise ValueError(
                "`reduction_factors` must list at least one number. "
                f"Received: reduction_factors={reduction_factors}"
            )
        self.reduction_factors = [
            validate_reduction_factor(value) for value in reduction_factors
        ]
        self.steps_per_stage = validate_positive_integer(
            "steps_per_stage", steps_per_stage
        )
        self.seed = seed
        self.sandwich = sandwich

    @property
    def num_compilations(self):
        """How often the training step is compiled, at most."""
        return len(set(self.reduction_factors))

    def stage_at(self, step):
        return step // self.steps_per_stage

    def reduction_factors_of(self, stage):
        # Of the stage and not of what was drawn before, so that a resumed
        # `fit` draws what an uninterrupted one would have.
        draw = random.Random(f"{self.seed}/{stage}")
        value = draw.choice(self.reduction_factors)
        if self.sandwich and stage % 3 < 2:
            value = (max, min)[stage % 3](self.reduction_factors)
        return [value] * len(self._targets)
