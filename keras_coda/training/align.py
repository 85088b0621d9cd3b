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
from keras_coda.training.inputs import preprocess
from keras_coda.training.observation import as_observable
from keras_coda.training.observation import encoder_of
from keras_coda.training.observation import stacks
from keras_coda.training.observation import without_gradients
from keras_coda.training.observed import all_logits
from keras_coda.training.observed import output_mask
from keras_coda.validation import validate_choice

TARGETS = ("pretrained", "fine_tuned")


def align(
    coda,
    dense,
    x,
    target="pretrained",
    optimizer=None,
    logits_weight=0.0,
    temperature=1.0,
    **fit_arguments,
):
    """Trains a converted model to reproduce a dense one, without labels.

    The dense one is the pretrained model, or what the converted model itself
    computes now at `reduction_factor=1`. With the latter, a model that was
    fine-tuned at `reduction_factor=1` becomes a fast one that computes nearly
    the same:

    ```
    coda = keras_coda.coda_wrap(classifier, reduction_factor=1)
    coda.fit(x, y)
    coda.reduction_factor = 4
    keras_coda.training.align(
        coda, classifier, x, target="fine_tuned", logits_weight=1.0
    )
    ```

    The loss is the mean over encoder blocks of the squared error of the hidden
    states, relative to the mean square of the dense model's, over real tokens.
    With `logits_weight` it is that of the last block but one, and the
    divergence of the output distribution from the dense model's, of real tokens
    where each has one. Adapters, routers and layer normalisations are trained
    as in fine-tuning; dropout is off. The dense model shares its frozen weights
    with `coda`, so it costs no further memory.

    Args:
        coda: what `keras_coda.coda_wrap` made, a backbone, a task or a model
            around a backbone. Compiled models stay so, with their optimizer as
            it was.
        dense: the model that `coda` was made from. It is not changed.
        x: what `fit` takes, as `keras_coda.training.calibrate` does; of batches
            that are no `tf.data.Dataset` those of `coda`'s inputs alone.
        target: `"pretrained"`, reproduce `dense`, or `"fine_tuned"`, reproduce
            what `coda` as it is now computes with a reduction factor of 1.
            Defaults to `"pretrained"`.
        optimizer: a Keras optimizer. Defaults to `AdamW` with learning rate
            `1e-3`.
        logits_weight: float >= 0. Weight of the divergence of the outputs,
            which have to be logits. Defaults to `0.0`.
        temperature: float > 0. What the logits are divided by. Defaults to
            `1.0`.
        **fit_arguments: of `keras.Model.fit`, such as `epochs`, `batch_size`
            and `callbacks`.

    Returns:
        The `keras.callbacks.History` of `fit`; `hidden_error` is the relative
        squared error, 0 where the hidden states are the dense model's.

    Raises:
        TypeError: if `coda` was not converted, or `dense` is of another kind.
        ValueError: if `target` is unknown, or `logits_weight` or `temperature`
            out of range.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    >>> images = np.random.normal(size=(4, 8, 8, 3)).astype("float32")
    >>> history = keras_coda.training.align(coda, dense, images, verbose=0)
    >>> sorted(history.history)
    ['hidden_error', 'loss']
    """
    validate_choice("target", target, TARGETS)
    _validate(coda, dense, logits_weight, temperature)
    graph = as_observable("coda", coda)
    teacher = _make_teacher(graph, as_observable("dense", dense), target)
    aligner = _Aligner(graph, teacher, logits_weight, temperature)
    aligner.compile(optimizer=optimizer or keras.optimizers.AdamW(1e-3))
    with warnings.catch_warnings():
        # Left-out blocks have none, nor has a head whose outputs are not read.
        warnings.filterwarnings("ignore", "Gradients do not exist")
        return aligner.fit(preprocess(coda, x), **fit_arguments)


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


class _Aligner(keras.Model):
    """What `align` fits; its losses are made in `call`."""

    def __init__(self, coda, teacher, logits_weight, temperature):
        # Whatever the policy is: layers of the models round their own inputs.
        super().__init__(name="aligner", dtype="float32")
        self.hidden_error = keras.metrics.Mean(name="hidden_error")
        self.logits_weight = logits_weight
        self.temperature = temperature
        blocks = [
            _observed_blocks(backbone_of(model), is_late=bool(logits_weight))
            for model in (coda, teacher)
        ]
        if logits_weight:
            self.divergence = keras.metrics.Mean(name="divergence")
        else:
            coda, teacher = encoder_of(coda), encoder_of(teacher)
        self.model = coda

        def run_teacher(inputs):
            with without_gradients(teacher):
                return teacher(inputs, training=False)

        # Within functions, so that they are tracked in the model alone.
        self.run_teacher, self.blocks = run_teacher, lambda: zip(*blocks)

    def call(self, inputs):
        # Without dropout, also within `fit`.
        with RoutingScope() as scope:
            outputs = self.model(inputs, training=False)
        with RoutingScope() as target_scope:
            target_outputs = self.run_teacher(inputs)
        errors = [
            _relative_error(scope.record(block), target_scope.record(target))
            for block, target in self.blocks()
        ]
        losses = {"hidden_error": ops.mean(ops.stack(errors))}
        if self.logits_weight:
            blocks = backbone_of(self.model).conditional_blocks
            losses["divergence"] = _divergence(
                outputs / self.temperature,
                target_outputs / self.temperature,
                output_mask(inputs, outputs.shape[:-1], blocks, scope),
            )
        return losses

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        self.hidden_error.update_state(y_pred["hidden_error"])
        if not self.logits_weight:
            return y_pred["hidden_error"]
        self.divergence.update_state(y_pred["divergence"])
        weighted = self.logits_weight * y_pred["divergence"]
        return y_pred["hidden_error"] + weighted


def _observed_blocks(backbone, is_late):
    """All blocks, or only the last but one of each stack."""
    if is_late:
        return [stack[-2:][0] for stack in stacks(backbone)]
    return backbone.conditional_blocks


def _relative_error(record, target_record):
    """Squared error of a block's outputs relative to the mean square."""
    outputs = ops.cast(record.outputs, "float32")
    target = ops.stop_gradient(ops.cast(target_record.outputs, "float32"))
    error = ops.mean(ops.square(outputs - target), axis=-1)
    scale = ops.mean(ops.square(target), axis=-1)
    if record.padding_mask is not None:
        real = ops.cast(record.padding_mask, "float32")
        error, scale = error * real, scale * real
    return ops.sum(error) / ops.sum(scale)


def _divergence(logits, target_logits, mask):
    """Kullback-Leibler divergence of two distributions given by logits.

    The mean over all that have one, or those where an optional mask is true.
    """
    log_outputs, log_targets = (
        ops.log_softmax(ops.cast(all_logits(x), "float32"))
        for x in (logits, ops.stop_gradient(target_logits))
    )
    divergences = ops.sum(
        ops.exp(log_targets) * (log_targets - log_outputs), axis=-1
    )
    if mask is None:
        return ops.mean(divergences)
    real = ops.cast(mask, "float32")
    return ops.sum(divergences * real) / ops.maximum(ops.sum(real), 1)
