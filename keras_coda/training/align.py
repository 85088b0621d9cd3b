import keras

from keras_coda.training.aligner import make_aligner
from keras_coda.training.inputs import preprocess
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
    aligner = make_aligner(coda, dense, target, logits_weight, temperature)
    aligner.compile(optimizer=optimizer or keras.optimizers.AdamW(1e-3))
    return aligner.fit(preprocess(coda, x), **fit_arguments)
