"""The model that `align` and `accelerate` fit."""

import warnings

import keras
from keras import ops

from keras_coda.conversion.around import with_backbone
from keras_coda.conversion.causal_lm import CodaCausalLM
from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.inputs import Batches
from keras_coda.training.observation import as_observable
from keras_coda.training.observation import encoder_of
from keras_coda.training.observation import stacks
from keras_coda.training.observation import without_gradients
from keras_coda.training.observed import all_logits
from keras_coda.training.observed import output_mask

# Of targets that are kept from epoch to epoch.
MAX_TARGET_BYTES = 2**30


def make_aligner(coda, dense, target, logits_weight, temperature):
    """An `Aligner` of a model to a dense one; see `align` for the arguments."""
    _validate(coda, dense, logits_weight, temperature)
    graph = as_observable("coda", coda)
    teacher = _make_teacher(graph, as_observable("dense", dense), target)
    return Aligner(graph, teacher, logits_weight, temperature)


def _validate(coda, dense, logits_weight, temperature):
    validate_converted("coda", coda)
    dense_cls = backbone_of(coda).dense_cls
    if type(backbone_of(dense)) is not dense_cls:
        raise TypeError(
            "`dense` must be the dense model that `coda` was made from, with a "
            f"{dense_cls.__name__}. Received: dense={dense!r}"
        )
    if logits_weight < 0 or not temperature > 0:
        raise ValueError(
            "`logits_weight` must be at least 0 and `temperature` positive. "
            f"Received: logits_weight={logits_weight}, "
            f"temperature={temperature}"
        )
    if logits_weight and backbone_of(coda) is coda:
        raise TypeError(
            "`logits_weight` needs a task, or a model around a backbone, that "
            f"returns logits. Received: coda={coda!r}"
        )


def _make_teacher(coda, dense, target):
    """What to reproduce, as a model with `reduction_factor=1`."""
    source, backbone = coda, backbone_of(coda)
    settings = {**vars(backbone.settings), "reduction_factor": 1}
    if target == "pretrained":
        source, settings = dense, {"adapter_dim": 1, "reduction_factor": 1}
    teacher = coda_wrap(backbone_of(dense), **settings)
    if target == "fine_tuned":
        weights = trained_weights(backbone)
        for path, weight in trained_weights(teacher).items():
            # By way of NumPy: on JAX the two would share a buffer.
            weight.assign(ops.convert_to_numpy(weights[path]))
    if source is backbone_of(source):
        return teacher
    if isinstance(coda, CodaCausalLM):
        return type(coda)(
            backbone=teacher,
            preprocessor=None,
            prompt_length=coda.prompt_length,
        )
    return with_backbone(source, teacher)


class Aligner(keras.Model):
    """A converted model that is fitted to compute what a dense one does.

    Args:
        coda: the functional model that is trained.
        teacher: one like it with `reduction_factor=1`.
        logits_weight, temperature: see `align`.
    """

    def __init__(self, coda, teacher, logits_weight, temperature):
        # Whatever the policy is: layers of the models round their own inputs.
        super().__init__(name="aligner", dtype="float32")
        self.hidden_error = keras.metrics.Mean(name="hidden_error")
        self.logits_weight = logits_weight
        self.temperature = temperature
        if logits_weight:
            self.divergence = keras.metrics.Mean(name="divergence")
        blocks, teacher_blocks = (
            _observed_blocks(backbone_of(model), is_late=bool(logits_weight))
            for model in (coda, teacher)
        )
        if not logits_weight:
            coda, teacher = encoder_of(coda), encoder_of(teacher)
        self.model = coda
        self.has_targets = False
        # Within functions, so that they are tracked in the model alone.
        self.blocks = lambda: blocks
        self.teacher = lambda: (teacher, teacher_blocks)

    def fit(self, x, **arguments):
        """Trains on inputs, or on what `with_targets` returned."""
        self.has_targets = isinstance(x, _BatchesWithTargets)
        with warnings.catch_warnings():
            # Left-out blocks have none, nor has a head whose outputs are not
            # read.
            warnings.filterwarnings("ignore", "Gradients do not exist")
            return super().fit(x, **arguments)

    def with_targets(self, inputs):
        """Batches for `fit`, with what the dense model computes of them.

        Else it is computed in each step, which is half of the work; and so it
        is where all of it takes more than `MAX_TARGET_BYTES`.

        Args:
            inputs: list of batches of inputs.
        """
        targets, size = [], 0
        for batch in inputs:
            values = keras.tree.map_structure(
                ops.convert_to_numpy, self.targets(batch)
            )
            targets.append(values)
            size += sum(value.nbytes for value in keras.tree.flatten(values))
            if size * len(inputs) > MAX_TARGET_BYTES * len(targets):
                return Batches(inputs)
        return _BatchesWithTargets(inputs, targets)

    def targets(self, inputs):
        """What the dense model computes, without dropout or gradients."""
        teacher, blocks = self.teacher()
        with without_gradients(teacher), RoutingScope() as scope:
            outputs = teacher(inputs, training=False)
        states = [scope.record(block).outputs for block in blocks]
        return self._computed(states, outputs)

    def call(self, inputs):
        """The same of the model that is trained, and masks of real tokens."""
        # Without dropout, also within `fit`.
        with RoutingScope() as scope:
            outputs = self.model(inputs, training=False)
        records = [scope.record(block) for block in self.blocks()]
        computed = self._computed([x.outputs for x in records], outputs)
        computed["state_masks"] = [
            _float_mask(x.padding_mask, x.outputs) for x in records
        ]
        if self.logits_weight:
            mask = output_mask(
                inputs,
                outputs.shape[:-1],
                backbone_of(self.model).conditional_blocks,
                scope,
            )
            computed["logits_mask"] = _float_mask(mask, outputs)
        return computed

    def _computed(self, states, outputs):
        # A tuple: `tf.data` takes no lists.
        computed = {"states": tuple(ops.cast(x, "float32") for x in states)}
        if self.logits_weight:
            computed["logits"] = ops.cast(all_logits(outputs), "float32")
        return computed

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        targets = y if self.has_targets else self.targets(x)
        targets = keras.tree.map_structure(ops.stop_gradient, targets)
        errors = map(
            _relative_error,
            y_pred["states"],
            targets["states"],
            y_pred["state_masks"],
        )
        error = ops.mean(ops.stack(list(errors)))
        self.hidden_error.update_state(error)
        if not self.logits_weight:
            return error
        divergence = _divergence(
            y_pred["logits"] / self.temperature,
            targets["logits"] / self.temperature,
            y_pred["logits_mask"],
        )
        self.divergence.update_state(divergence)
        return error + self.logits_weight * divergence


class _BatchesWithTargets(Batches):
    def __init__(self, inputs, targets):
        super().__init__(inputs)
        self.targets = targets

    def __getitem__(self, index):
        return *super().__getitem__(index), self.targets[index]


def _observed_blocks(backbone, is_late):
    """All blocks, or only the last but one of each stack."""
    if is_late:
        return [stack[-2:][0] for stack in stacks(backbone)]
    return backbone.conditional_blocks


def _float_mask(mask, outputs):
    """A mask of outputs, in numbers; 1 for all if there is none."""
    if mask is None:
        return ops.ones_like(outputs[..., 0], "float32")
    return ops.cast(mask, "float32")


def _relative_error(outputs, targets, mask):
    """Squared error of real tokens relative to the mean square."""
    error = ops.mean(ops.square(outputs - targets), axis=-1)
    scale = ops.mean(ops.square(targets), axis=-1)
    return ops.sum(error * mask) / ops.sum(scale * mask)


def _divergence(logits, target_logits, mask):
    """Mean Kullback-Leibler divergence of distributions given by logits."""
    log_outputs, log_targets = map(ops.log_softmax, (logits, target_logits))
    divergences = ops.sum(
        ops.exp(log_targets) * (log_targets - log_outputs), axis=-1
    )
    return ops.sum(divergences * mask) / ops.maximum(ops.sum(mask), 1)
