import keras
import keras_hub
import numpy as np

from keras_coda._keras_internals import sublayers
from keras_coda.conversion import registry
from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.inputs import ShuffledBatches
from keras_coda.training.inputs import validate_inputs
from keras_coda.training.masked_frames import MaskedFramesObjective
from keras_coda.training.masked_frames import encoder_tensors
from keras_coda.training.masked_frames import find_frames
from keras_coda.training.masked_lm import MaskedLMObjective
from keras_coda.training.masked_patches import MaskedPatchesObjective
from keras_coda.training.span_corruption import SpanCorruptionObjective

# The objective of a backbone is that of the tasks that KerasHub has for it, or
# of its inputs, where they are frames of speech.
_OBJECTIVES = {
    keras_hub.models.MaskedLM: MaskedLMObjective,
    keras_hub.models.Seq2SeqLM: SpanCorruptionObjective,
    keras_hub.models.ImageClassifier: MaskedPatchesObjective,
}


def pretrain(
    coda,
    x,
    tokenizer=None,
    sequence_length=None,
    mask_rate=None,
    reduction_factor=512 / 192,
    all_weights=False,
    optimizer=None,
    batch_size=32,
    seed=0,
    **fit_arguments,
):
    """Continues pretraining, so that adapters and routers learn to route.

    The paper's second step, between conversion and fine-tuning, on raw texts,
    images or speech without labels. The objective is the backbone's own:

    - BERT: masked language modelling, with KerasHub's preprocessing.
    - T5: span corruption, `keras_coda.training.corrupt_spans`.
    - ViT: the pixels of masked patches (Xie et al., 2022), each patch
      normalised, on top of the tokens of the last block.
    - Whisper's encoder, and backbones of your own that take frames of features
      and, if anything else, a mask of padding: BEST-RQ (Chiu et al., 2022),
      the codes that a random `keras_coda.training.RandomProjectionQuantizer`
      gives masked frames. Spans of 40 frames are replaced by noise of
      deviation 0.1. If the encoder makes one token of several frames, so are
      the vectors that are quantised.

    Adapters, routers and layer normalisations are trained, and the objective's
    head. Inputs are cut to `sequence_length`; masks are drawn anew each epoch.

    Args:
        coda: what `keras_coda.coda_wrap` made. A backbone gets a new head for
            the objective; a task for it, such as a converted
            `keras_hub.models.BertMaskedLM`, keeps its own, which is better
            where that is pretrained.
        x: list of str, or an array of images as `coda.fit` takes them (those of
            a task with a preprocessor go through it), or utterances: arrays
            of shape `(frames, features)`, as the backbone takes them, whose
            features should have about mean 0 and deviation 1.
        tokenizer: the backbone's KerasHub tokenizer, for texts. Defaults to
            that of the task's preprocessor.
        sequence_length: optional int. Tokens in a text, or frames in an
            utterance. Defaults to `512` for texts, or what the model has
            position embeddings for, and to the longest utterance.
        mask_rate: optional float in (0, 1). Share of the tokens, or patches,
            to mask. Defaults to `0.15` for texts, `0.6` for images and 0.33
            for speech, where spans begin at one frame in a hundred.
        reduction_factor: a number >= 1, or a list with one per block, to
            pretrain at. Afterwards the model has its own again. Defaults to
            512 / 192, the paper's.
        all_weights: bool. Whether the frozen weights are trained too. They are
            shared with the model that `coda` was made from, which then
            changes. Defaults to `False`.
        optimizer: a Keras optimizer. Defaults to `AdamW` with learning rate
            `1e-3`.
        batch_size: int. Defaults to `32`.
        seed: int. Of the order of the inputs and, but for BERT, of the masks.
            Defaults to `0`.
        **fit_arguments: of `keras.Model.fit`, such as `epochs` and
            `callbacks`.

    Returns:
        The `keras.callbacks.History` of `fit`, with the `loss` and, for texts
        and speech, the `accuracy` at the masked tokens.

    Raises:
        TypeError: if `coda` was not converted, or is a backbone without an
            objective.
        ValueError: if an argument is out of range or missing.

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
    >>> images = np.random.normal(size=(16, 8, 8, 3)).astype("float32")
    >>> history = keras_coda.training.pretrain(coda, images, verbose=0)
    >>> sorted(history.history)
    ['loss']

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), section 3.3 and
        figure 3; [Xie et al., 2022](https://arxiv.org/abs/2111.09886);
        [Chiu et al., 2022](https://arxiv.org/abs/2202.01855).
    """
    validate_converted("coda", coda)
    validate_inputs(x)
    if mask_rate is not None and not 0 < mask_rate < 1:
        raise ValueError(
            "`mask_rate` must lie between 0 and 1: the share of the tokens to "
            f"mask. Received: mask_rate={mask_rate}"
        )
    backbone = backbone_of(coda)
    task_cls, objective_cls = _find_objective(backbone)
    if sequence_length is None:
        sequence_length = objective_cls.default_sequence_length(backbone, x)
    objective = objective_cls(
        coda,
        task_cls,
        tokenizer=tokenizer,
        sequence_length=sequence_length,
        mask_rate=mask_rate,
        rng=np.random.default_rng(seed),
    )
    own_reduction_factor = backbone.reduction_factor
    try:
        backbone.reduction_factor = reduction_factor
        if all_weights:
            _unfreeze(backbone)
        objective.model.compile(
            optimizer=optimizer or keras.optimizers.AdamW(1e-3),
            loss=objective.loss,
            weighted_metrics=objective.metrics,
        )
        batches = ShuffledBatches(x, objective.make_batch, batch_size, seed)
        return objective.model.fit(batches, **fit_arguments)
    finally:
        backbone.reduction_factor = own_reduction_factor
        if all_weights:
            backbone.freeze()


def _find_objective(backbone):
    inputs, outputs = encoder_tensors(backbone)
    frames = find_frames(inputs)
    if frames is None:
        for task_cls in registry.tasks_of(type(backbone)):
            for kind, objective_cls in _OBJECTIVES.items():
                if issubclass(task_cls, kind):
                    return task_cls, objective_cls
    # One feature a frame is raw audio, as Moonshine takes it.
    elif inputs[frames].shape[-1] != 1 and keras.utils.is_keras_tensor(outputs):
        return None, MaskedFramesObjective
    raise TypeError(
        "`coda` must have a family with a masked language model, a "
        "sequence-to-sequence model that reads texts or an image classifier, "
        "or take frames of features, of shape (batch_size, frames, features), "
        "not raw audio. "
        f"Received: a backbone of type {type(backbone).__name__}"
    )


def _unfreeze(backbone):
    for layer in sublayers(backbone, recursive=True):
        layer.trainable = True
    for weight in backbone.weights:
        weight.trainable = True
