import importlib.util
import math

import keras
import keras_hub
import numpy as np
import rich.progress
from rich.console import Console

from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.set_reduction_factor import forget_compiled
from keras_coda.training import routing_regression
from keras_coda.training import token_importance
from keras_coda.training.block_chain import BlockChain
from keras_coda.training.budget import Search
from keras_coda.training.calibration import Calibration
from keras_coda.training.cost import COSTS
from keras_coda.training.cost import Cost
from keras_coda.training.cost import MeasuredCost
from keras_coda.training.inputs import hold_back
from keras_coda.training.inputs import make_batches
from keras_coda.training.observation import as_observable
from keras_coda.training.observation import block_lengths
from keras_coda.training.observation import dense
from keras_coda.training.observation import front_of
from keras_coda.training.observation import without_gradients
from keras_coda.training.observed import OBSERVED
from keras_coda.training.observed import Observed
from keras_coda.training.shortcut_fits import fit_shortcuts
from keras_coda.validation import validate_choice

# Their outputs are logits, unless they have an activation.
LOGITS_TASKS = (
    keras_hub.models.CausalLM,
    keras_hub.models.ImageClassifier,
    keras_hub.models.MaskedLM,
    keras_hub.models.Seq2SeqLM,
    keras_hub.models.TextClassifier,
)
# Inputs on which the error of reduction factors is measured, at most, and
# numbers that are read of them: logits of a large vocabulary take memory.
NUM_OBSERVED = 64
NUM_OBSERVED_VALUES = 1e8


def calibrate(
    coda,
    x,
    speedup=None,
    observed=None,
    are_logits=None,
    batch_size=32,
    ridge=1e-3,
    num_passes=8,
    seed=0,
    verbose=1,
    cost="flops",
):
    """Makes a converted model fast without labels or training.

    Some hundred inputs are enough. For what the model computes at
    `reduction_factor=1`, with its adapters as they are, to be kept at higher
    ones:

    - Each block's router becomes the linear function of a token that best
      predicts how much the outputs depend on routing it: the logarithm of its
      Fisher information, which one gradient gives for all tokens and blocks.
      With `attention="k_to_k"` routing a token matters to others too, so every
      input is computed `num_passes` times with tokens routed at random, the
      same by all blocks, and the logarithm of the error is regressed on the
      tokens that were routed. The scores have a standard deviation of 0.25.
    - Each block's shortcut, where there is one (`shortcut_dim`), becomes the
      linear map of its rank that best predicts what a token lacks that is not
      routed (reduced-rank ridge regression); where all tokens are read, on the
      states that the routed blocks before make.
    - With `speedup`, a reduction factor is chosen for each block. The error of
      what is read of the model is measured, on inputs held back from the fits
      (64, or a quarter), for factors that are fast enough: dense first or last
      blocks, left-out blocks, and what a search among them finds.

    Fine-tune densely first, then calibrate: a fit to the pretrained model does
    not fit the fine-tuned one.

    Args:
        coda: what `keras_coda.coda_wrap` made, a backbone or a task, or a model
            around such a backbone. Its reduction factors (with `speedup`),
            shortcuts and routers are set, nothing else is changed.
        x: what `fit` takes. For a task with a preprocessor texts, a tuple of
            two lists of texts for a task on pairs, or images; or a dict of
            arrays that it has preprocessed. For other models arrays of their
            inputs. Or an iterable of batches of any of these, such as a
            `tf.data.Dataset`, with labels or without, which are not read.
        speedup: optional float > 1. How many times less the model is to cost
            than the dense model, before it was converted. Defaults to `None`:
            the reduction factors that the model has.
        observed: what is read of the model. `"pinned"`, the tokens that are
            always routed; `"tokens"`, all real ones; or a function of the
            inputs that runs `coda`, such as a model around it, and returns
            what is read. Defaults to the outputs of `coda`; to the pinned
            tokens of a backbone, or all if it pins none.
        are_logits: optional bool. Whether what is read are logits of classes
            of which one is right, or one logit of whether something is: the
            error is then the divergence of the distributions over the last
            axis, and else the squared error relative to the variance. Say
            `False` where several labels may be right. Defaults to `True` for
            the outputs of classifiers without an activation and of language
            models.
        batch_size: int. For arrays. Defaults to `32`.
        ridge: float >= 0. Penalty on the shortcuts' squared coefficients, in
            units of the mean variance of what they multiply. Defaults to
            `1e-3`.
        num_passes: int >= 2. Random routings of each input, with
            `attention="k_to_k"`. Defaults to `8`.
        seed: int. Of what is drawn at random. Defaults to `0`.
        verbose: 0 or 1. Whether to show progress. Defaults to `1`.
        cost: what `speedup` is asked of. `"flops"`, multiply-adds of the
            encoder: what large blocks and long inputs come close to, and XLA.
            `"seconds"`, of `predict` on this machine, of the whole backbone and
            a batch like the first of `x`; for that, copies of the model without
            its weights are timed at some factors, which takes the memory of
            one more dense model. Defaults to `"flops"`.

    Returns:
        A `Calibration`: `reduction_factor`, a list; `speedup`, of that cost;
        `error`, that of what is read, on 64 inputs at most, with `speedup`
        others than those fitted; and `blocks`, a dict from the name of each
        block to what was fitted: `"shortcut"`, the share of what tokens lack
        that is explained, and `"router"`, the correlation with the logarithm
        of the information, or of the error. A router whose choice makes no
        difference is not fitted.
        It prints as a table.

    Raises:
        TypeError: if `coda` was not converted, or calls its backbone twice.
        ValueError: if `num_passes` is below 2, `observed` or `cost` is unknown,
            `coda` is a language model without a `prompt_length`, or `speedup`
            is out of reach; the message says what is in reach.

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
    >>> calibration = keras_coda.training.calibrate(
    ...     coda, images, speedup=1.2, verbose=0
    ... )
    >>> coda.reduction_factor == calibration.reduction_factor
    True
    >>> calibration.speedup >= 1.2
    True

    Reference:
        Fisher information as the cost of leaving something out:
        [Theis et al., 2018](https://arxiv.org/abs/1801.05787).
    """
    validate_converted("coda", coda)
    calibrator = Calibrator(
        coda,
        make_batches(coda, x, batch_size),
        observed,
        are_logits,
        ridge,
        num_passes,
        seed,
        verbose,
        cost,
    )
    return calibrator.run(speedup)


class Calibrator:
    """What `calibrate` does, for whom it goes on after; see there.

    Attributes:
        inputs: list of the batches that are fitted, as tensors.
        held_back: list of those on which the error is measured.
        alternatives: list of reduction factors that are as fast as those that
            were chosen, and may be better after training: dense first blocks
            alone, where all tokens are read.
    """

    def __init__(
        self,
        coda,
        inputs,
        observed=None,
        are_logits=None,
        ridge=1e-3,
        num_passes=8,
        seed=0,
        verbose=1,
        cost="flops",
    ):
        graph = as_observable("coda", coda)
        self.cost = validate_choice("cost", cost, COSTS)
        if num_passes < 2:
            raise ValueError(
                "`num_passes` must be at least 2, because random routings of "
                f"the same input are compared. Received: {num_passes=}"
            )
        if getattr(coda, "prompt_length", None) == 0:
            raise ValueError(
                "A language model routes its prompts: set "
                "`coda.prompt_length`, or pass `prompt_length` to "
                "`accelerate`, the number of positions that they take in `x`. "
                "Received: coda.prompt_length=0"
            )
        if observed is not None and not callable(observed):
            validate_choice("observed", observed, OBSERVED)
        self.coda, self.backbone = graph, backbone_of(coda)
        self.inputs = inputs
        self.ridge, self.num_passes = ridge, num_passes
        self.rng = np.random.default_rng(seed)
        self.verbose = verbose
        self.models = [coda, *[observed] * isinstance(observed, keras.Model)]
        if are_logits is None:
            are_logits = observed is None and has_logits(coda)
        self.are_logits = are_logits
        self.alternatives = []
        with without_gradients(*self.models):
            self.read = self._what_is_read(observed)
            self.held_back = hold_back(self.inputs, self._num_observed())
            self.observed = self._observe(self.held_back)

    def _what_is_read(self, observed):
        if observed is not None:
            return observed
        if self.coda is not self.backbone:
            return self.coda
        first = Observed(self.coda, self.inputs[:1], "pinned", False)
        return "pinned" if first.reads_something else "tokens"

    def _num_observed(self):
        if not callable(self.read):
            return NUM_OBSERVED
        with dense(self.backbone.conditional_blocks):
            outputs = keras.tree.flatten(self.read(self.inputs[0]))
        size = sum(math.prod(output.shape[1:]) for output in outputs)
        return min(NUM_OBSERVED, int(NUM_OBSERVED_VALUES / size))

    def _observe(self, inputs):
        are_logits = self.are_logits and callable(self.read)
        return Observed(self.coda, inputs, self.read, are_logits)

    def run(self, speedup=None):
        """Returns a `Calibration`."""
        bar = rich.progress.Progress(
            disable=not self.verbose or not can_show_progress(),
            transient=True,
            redirect_stdout=False,
        )
        blocks = self.backbone.conditional_blocks
        before = [block.reduction_factor for block in blocks]
        try:
            with without_gradients(*self.models), bar:
                return self._run(speedup, bar)
        except BaseException:
            # Not the factors of a search that was interrupted.
            self._set_factors(before)
            raise

    def run_at(self, reduction_factor):
        """Returns a `Calibration` for other reduction factors."""
        self._set_factors(reduction_factor)
        return self.run()

    def error(self):
        """The error of what is read, of the model as it is."""
        chain = BlockChain(self.coda, self.held_back)
        with without_gradients(*self.models):
            return self.observed.mean_error(chain.outputs(self.observed.run))

    def _run(self, speedup, bar):
        blocks = self.backbone.named_blocks
        lengths = block_lengths(self.coda, self.inputs[0])
        if self.cost == "flops":
            cost = Cost(self.backbone, lengths)
        else:
            batch, front = self.inputs[0], front_of(self.coda)
            if front is not None:
                batch = front(batch, training=False)
            cost = MeasuredCost(self.backbone, lengths, batch)
        if speedup is not None:
            search = Search(self.coda, self.observed, cost, speedup)
            self._set_factors(search.uniform())
            if len(self.inputs) > len(self.held_back):
                self.inputs = self.inputs[: -len(self.held_back)]
        task = bar.add_task("fitting", total=None)
        shortcuts = self._fit_shortcuts(in_sequence=False)
        routers = self._fit_routers()
        if speedup is not None:
            chosen = search.run(bar)
            self._set_factors(chosen)
            if self.observed.reads_all_tokens:
                dropped = search.merged(search.layers_left_out())
                self.alternatives = [dropped] * (dropped not in ([], chosen))
            if self._routers_depend_on_factors:
                routers = self._fit_routers()
        if self.observed.reads_all_tokens:
            shortcuts |= self._fit_shortcuts(in_sequence=True)
        bar.remove_task(task)
        factors = [block.reduction_factor for block in blocks.values()]
        fits = {"shortcut": shortcuts, "router": routers}
        return Calibration(
            reduction_factor=factors,
            speedup=cost.speedup(factors),
            error=self.error(),
            blocks={
                name: {
                    part: values[id(block)]
                    for part, values in fits.items()
                    if id(block) in values and not block.is_left_out
                }
                for name, block in blocks.items()
            },
            cost=self.cost,
        )

    def _set_factors(self, factors):
        self.backbone.reduction_factor = factors
        for model in self.models:
            forget_compiled(model)

    def _fit_shortcuts(self, in_sequence):
        return fit_shortcuts(self.coda, self.inputs, self.ridge, in_sequence)

    @property
    def _routers_depend_on_factors(self):
        return self.backbone.attention == "k_to_k"

    def _fit_routers(self):
        if self._routers_depend_on_factors:
            return routing_regression.fit_routers(
                self.backbone,
                self.inputs,
                self._observe,
                self.num_passes,
                self.rng,
            )
        return token_importance.fit_routers(
            self.backbone, self.inputs, self._observe, self.models, self.rng
        )


def can_show_progress():
    """Whether Rich can: notebooks without ipywidgets get a warning instead."""
    has_widgets = importlib.util.find_spec("ipywidgets") is not None
    return has_widgets or not Console().is_jupyter


def has_logits(model):
    """Whether the outputs of a model are known to be logits."""
    activation = keras.activations.get(getattr(model, "activation", None))
    is_linear = activation is keras.activations.linear
    return isinstance(model, LOGITS_TASKS) and is_linear
