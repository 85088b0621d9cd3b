import keras

from keras_coda.layers.set_reduction_factor import conditional_blocks
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.validation import validate_positive_integer


class ReductionCallback(keras.callbacks.Callback):
    """Base of the callbacks that train at changing reduction factors.

    Training is divided in stages; `stage_at` says which stage a step belongs
    to and `reduction_factors_of` what to train it at. Each set of reduction
    factors is compiled once, when it is first used.

    Afterwards the model has the reduction factors that it had before. Where
    `fit` is interrupted, converted backbones and tasks see to that themselves;
    for a model of one's own, call `restore`.

    Args:
        total_steps: optional int. The steps of the whole `fit`, for datasets
            of unknown length.
        verbose: 0 or 1. Whether to print each change. Defaults to `1`.
    """

    def __init__(self, total_steps=None, verbose=1):
        super().__init__()
        if total_steps is not None:
            validate_positive_integer("total_steps", total_steps)
        self.total_steps = total_steps
        self.verbose = verbose
        self._targets = None

    def stage_at(self, step):
        """The stage, an int, of a step counted from 0 over all epochs."""
        raise NotImplementedError

    def reduction_factors_of(self, stage):
        """The reduction factors, one per block, to train a stage at."""
        raise NotImplementedError

    def on_train_begin(self, logs=None):
        self._steps_per_epoch = self.params.get("steps")
        if self.total_steps is None and self._steps_per_epoch is None:
            raise ValueError(
                f"`{type(self).__name__}` has to know how many steps `fit` "
                "will take, and the length of this dataset is unknown. Pass "
                "`steps_per_epoch` to `fit`, or `total_steps` to the callback."
            )
        self._num_steps = (
            self.total_steps or self._steps_per_epoch * self.params["epochs"]
        )
        self._targets = [
            block.reduction_factor for block in conditional_blocks(self.model)
        ]
        self._step = -1
        self._stage = None
        self._compiled = {}
        self.model.reduction_callback = self

    def on_epoch_begin(self, epoch, logs=None):
        self._first_step = self._step + 1
        if self._steps_per_epoch is not None:
            # The first epoch is a later one where `BackupAndRestore` resumes.
            self._first_step = epoch * self._steps_per_epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._step = self._first_step + batch
        stage = self.stage_at(self._step)
        if stage != self._stage:
            self._stage = stage
            self._train_at(self.reduction_factors_of(stage))

    def on_train_end(self, logs=None):
        self.restore()

    def restore(self):
        """Gives the model the reduction factors that it had before `fit`."""
        if self._targets is not None:
            set_reduction_factor(self.model, self._targets)
            self.model.reduction_callback = None
            self._targets = None
            self._compiled = None

    def _train_at(self, reduction_factors):
        current = [
            block.reduction_factor for block in conditional_blocks(self.model)
        ]
        if reduction_factors != current:
            set_reduction_factor(self.model, reduction_factors)
        key = tuple(reduction_factors)
        if key in self._compiled:
            self.model.train_function = self._compiled[key]
        else:
            self._compiled[key] = self.model.train_function
        if self.verbose:
            values = ", ".join(
                f"{value:.3g}" for value in dict.fromkeys(reduction_factors)
            )
            print(
                f"\nStep {self._step}: training at reduction_factor={values} "
                f"({len(self._compiled)} of at most {self.num_compilations} "
                "compilations)."
            )
