from typing import NamedTuple

import keras
from keras import ops
from rich.console import Console

from keras_coda.conversion.causal_lm import CodaCausalLM
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.training.aligner import make_aligner
from keras_coda.training.calibrate import Calibrator
from keras_coda.training.calibration import Calibration
from keras_coda.training.inputs import count_batches
from keras_coda.training.inputs import make_batches
from keras_coda.validation import validate_non_negative_integer

# Inputs that are calibrated on, at most: more of them say little.
NUM_CALIBRATED = 512


def accelerate(
    model,
    x,
    speedup=2.5,
    epochs=2,
    learning_rate=1e-3,
    batch_size=32,
    seed=0,
    verbose=1,
    are_logits=None,
    cost="flops",
    prompt_length=None,
    objective=None,
    **settings,
):
    """Makes a fine-tuned dense model fast, without labels.

    It converts the model, chooses a reduction factor for each block, fits
    shortcuts and routers (`keras_coda.training.calibrate`), and then trains
    adapters, routers and layer normalisations to compute what the dense model
    does (`keras_coda.training.align`). Where all tokens are read, it trains
    dense first blocks alone too, which training brings further than it does
    others. Of what was calibrated and trained, it keeps what has the smallest
    error on inputs that were held back, or the smallest `objective`: every
    epoch is one that may be the last. What the dense model computes of `x` is
    kept, where that takes 1 GiB of memory or less: to compute it in each step
    is half of the work.

    Args:
        model: a fine-tuned KerasHub task, a functional or sequential model of
            your own around a backbone, or a backbone. It is not changed, and
            shares its frozen weights with what is returned.
        x: inputs without labels, see `keras_coda.training.calibrate`. The first
            512 are calibrated on, all are trained on. Some thousand are worth
            it, most of all where all tokens are read.
        speedup: float > 1. How many times less the model is to cost. Defaults
            to `2.5`.
        epochs: int >= 0. Of training. Defaults to `2`.
        learning_rate: float. Of training, by AdamW with a cosine decay. A high
            one does harm. Defaults to `1e-3`.
        batch_size: int. For arrays and texts. Defaults to `32`.
        seed: int. Of what is drawn at random. Defaults to `0`.
        verbose: 0 or 1. Whether to show progress and print what was chosen.
            Defaults to `1`.
        are_logits: optional bool. Whether `model` returns logits, whose
            distribution is to be kept. Defaults to `True` for classifiers and
            language models of KerasHub, else `False`.
        cost: `"flops"` or `"seconds"`, what `speedup` is asked of; see
            `keras_coda.training.calibrate`. Defaults to `"flops"`.
        prompt_length: int. Of a language model, how many positions of `x` are
            the prompt; see docs/language_models.md. Defaults to `None`.
        objective: optional function of the converted model, to be as small as
            can be: the error on labelled inputs, say. Without labels,
            which of two models is better for a task is a guess. Defaults to
            the error on inputs that were held back.
        **settings: of `keras_coda.coda_wrap`. `shortcut_dim` defaults to `64`.

    Returns:
        A tuple of the converted model, of the same kind as `model`, and the
        `Calibration`, whose `error` is that after training.

    Raises:
        TypeError: if `model` is converted already, or cannot be.
        ValueError: if an argument is out of range, or `speedup` out of reach.

    Example:

    >>> backbone = keras_hub.models.BertBackbone(
    ...     vocabulary_size=100,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=32,
    ...     intermediate_dim=64,
    ... )
    >>> classifier = keras_hub.models.BertTextClassifier(
    ...     backbone, num_classes=2, preprocessor=None
    ... )
    >>> tokens = {
    ...     "token_ids": np.random.randint(1, 100, size=(16, 12)),
    ...     "segment_ids": np.zeros((16, 12), "int32"),
    ...     "padding_mask": np.ones((16, 12), "int32"),
    ... }
    >>> fast, calibration = keras_coda.training.accelerate(
    ...     classifier,
    ...     tokens,
    ...     speedup=1.5,
    ...     adapter_dim=2,
    ...     shortcut_dim=2,
    ...     verbose=0,
    ... )
    >>> print(calibration.speedup >= 1.5, fast.predict(tokens, verbose=0).shape)
    True (16, 2)
    """
    validate_non_negative_integer("epochs", epochs)
    coda = _convert(model, prompt_length, settings)
    batches = make_batches(coda, x, batch_size)
    num_calibrated = count_batches(batches, NUM_CALIBRATED)
    calibrator = Calibrator(
        coda,
        batches[:num_calibrated],
        are_logits=are_logits,
        seed=seed,
        verbose=verbose,
        cost=cost,
    )
    weights = trained_weights(coda).values()
    start = list(map(ops.convert_to_numpy, weights))
    calibration = calibrator.run(speedup)
    inputs = calibrator.inputs + batches[num_calibrated:]
    best = None

    def keep(calibration):
        nonlocal best
        score = calibration.error if objective is None else objective(coda)
        if best is None or score < best.score:
            values = list(map(ops.convert_to_numpy, weights))
            best = _Found(calibration, values, score)

    def keep_epoch(epoch, logs=None):
        keep(calibration._replace(error=calibrator.error()))

    keep(calibration)
    candidates = [calibration.reduction_factor, *calibrator.alternatives]
    for number, factors in enumerate(candidates if epochs else []):
        if number > 0:
            _assign(weights, start)
            calibration = calibrator.run_at(factors)
        # One for each: JAX would go on with what it compiled.
        aligner = make_aligner(
            coda, model, "pretrained", float(calibrator.are_logits), 2.0
        )
        if number == 0:
            inputs = aligner.with_targets(inputs)
        num_steps = epochs * len(inputs)
        aligner.compile(optimizer=_optimizer(learning_rate, num_steps))
        aligner.fit(
            inputs,
            epochs=epochs,
            verbose=verbose,
            callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=keep_epoch)],
        )
    calibration = best.calibration
    set_reduction_factor(coda, calibration.reduction_factor)
    _assign(weights, best.values)
    if verbose:
        Console().print(str(calibration), highlight=False)
    return coda, calibration


def _convert(model, prompt_length, settings):
    if isinstance(model, CodaModel):
        raise TypeError(
            "`model` must be a dense model. A converted one is made fast with "
            "`keras_coda.training.calibrate(model, x, speedup=...)`. Received: "
            f"model={model!r}"
        )
    settings = {"shortcut_dim": 64, **settings}
    coda = coda_wrap(model, reduction_factor=1, **settings)
    if prompt_length is None:
        return coda
    if not isinstance(coda, CodaCausalLM):
        raise ValueError(
            "Language models alone have a `prompt_length`. Received: "
            f"prompt_length={prompt_length}, model={model!r}"
        )
    coda.prompt_length = prompt_length
    return coda


class _Found(NamedTuple):
    """A model that was found.

    Attributes:
        calibration: its `Calibration`.
        values: arrays of its weights.
        score: the smaller the better.
    """

    calibration: Calibration
    values: list
    score: float


def _assign(weights, values):
    for weight, value in zip(weights, values):
        weight.assign(value)


def _optimizer(learning_rate, num_steps):
    """AdamW with a warm-up and a cosine decay."""
    num_warmup = num_steps // 10
    return keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0,
            decay_steps=max(num_steps - num_warmup, 1),
            warmup_target=learning_rate,
            warmup_steps=max(num_warmup, 1),
        )
    )
