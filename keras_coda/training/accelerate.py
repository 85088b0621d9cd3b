import keras
from keras import ops
from rich.console import Console

from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.trained_weights import trained_weights
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
    **settings,
):
    """Makes a fine-tuned dense model fast, without labels.

    It converts the model, chooses a reduction factor for each block, fits
    shortcuts and routers (`keras_coda.training.calibrate`), and then trains
    adapters, routers and layer normalisations to compute what the dense model
    does (`keras_coda.training.align`). If training did not lower the error on
    inputs that were held back, it is undone.

    Args:
        model: a fine-tuned KerasHub task, a functional model of your own around
            a backbone, or a backbone. It is not changed, and shares its frozen
            weights with what is returned.
        x: inputs without labels, see `keras_coda.training.calibrate`: some
            hundred to calibrate, some thousand to train on.
        speedup: float > 1. How many times fewer multiply-adds the encoder is
            to take. Defaults to `2.5`.
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
    calibrator = Calibrator(
        coda,
        x,
        are_logits=are_logits,
        batch_size=batch_size,
        seed=seed,
        verbose=verbose,
    )
    calibration = calibrator.run(speedup)
    if epochs:
        weights = trained_weights(coda).values()
        before = [ops.convert_to_numpy(weight) for weight in weights]
        num_steps = epochs * len(calibrator.inputs)
        align(
            coda,
            model,
            Batches(calibrator.inputs),
            optimizer=keras.optimizers.AdamW(
                keras.optimizers.schedules.CosineDecay(
                    0.0,
                    decay_steps=max(num_steps - num_steps // 10, 1),
                    warmup_target=learning_rate,
                    warmup_steps=max(num_steps // 10, 1),
                )
            ),
            logits_weight=float(calibrator.are_logits),
            temperature=2.0,
            epochs=epochs,
            verbose=verbose,
        )
        error = calibrator.error()
        if error < calibration.error:
            calibration = calibration._replace(error=error)
        else:
            for weight, value in zip(weights, before):
                weight.assign(value)
    if verbose:
        Console().print(str(calibration), highlight=False)
    return coda, calibration
