import keras
from keras import ops
from rich.console import Console

from keras_coda.conversion.causal_lm import CodaCausalLM
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.training.align import align
from keras_coda.training.calibrate import Calibrator
from keras_coda.training.inputs import Batches
from keras_coda.validation import validate_non_negative_integer


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
    **settings,
):
    """Makes a fine-tuned dense model fast, without labels.

    It converts the model, chooses a reduction factor for each block, fits
    shortcuts and routers (`keras_coda.training.calibrate`), and then trains
    adapters, routers and layer normalisations to compute what the dense model
    does (`keras_coda.training.align`). Where all tokens are read, it trains
    dense first blocks alone too, which training brings further than it does
    others. Of what was calibrated and trained, it keeps what has the smallest
    error on inputs that were held back.

    Args:
        model: a fine-tuned KerasHub task, a functional model of your own around
            a backbone, or a backbone. It is not changed, and shares its frozen
            weights with what is returned.
        x: inputs without labels, see `keras_coda.training.calibrate`: some
            hundred to calibrate, some thousand to train on.
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
    if isinstance(model, CodaModel):
        raise TypeError(
            "`model` must be a dense model. A converted one is made fast with "
            "`keras_coda.training.calibrate(model, x, speedup=...)`. Received: "
            f"model={model!r}"
        )
    validate_non_negative_integer("epochs", epochs)
    settings = {"shortcut_dim": 64, **settings}
    coda = coda_wrap(model, reduction_factor=1, **settings)
    if prompt_length is not None:
        if not isinstance(coda, CodaCausalLM):
            raise ValueError(
                "Language models alone have a `prompt_length`. Received: "
                f"prompt_length={prompt_length}, model={model!r}"
            )
        coda.prompt_length = prompt_length
    calibrator = Calibrator(
        coda,
        x,
        are_logits=are_logits,
        batch_size=batch_size,
        seed=seed,
        verbose=verbose,
        cost=cost,
    )
    weights = trained_weights(coda).values()
    start = list(map(ops.convert_to_numpy, weights))
    calibration = calibrator.run(speedup)
    found = [_Found(calibration, weights)]
    candidates = [calibration.reduction_factor, *calibrator.alternatives]
    for number, factors in enumerate(candidates if epochs else []):
        if number > 0:
            _assign(weights, start)
            calibration = calibrator.run_at(factors)
        align(
            coda,
            model,
            Batches(calibrator.inputs),
            optimizer=_optimizer(
                learning_rate, epochs * len(calibrator.inputs)
            ),
            logits_weight=float(calibrator.are_logits),
            temperature=2.0,
            epochs=epochs,
            verbose=verbose,
        )
        aligned = calibration._replace(error=calibrator.error())
        found.append(_Found(aligned, weights))
    best = min(found, key=lambda x: x.calibration.error)
    calibration = best.calibration
    set_reduction_factor(coda, calibration.reduction_factor)
    _assign(weights, best.values)
    if verbose:
        Console().print(str(calibration), highlight=False)
    return coda, calibration


class _Found:
    """A calibrated model: its `Calibration`, and the values of its weights."""

    def __init__(self, calibration, weights):
        self.calibration = calibration
        self.values = list(map(ops.convert_to_numpy, weights))


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
