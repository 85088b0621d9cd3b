import keras
import keras_hub
import numpy as np

from keras_coda._keras_internals import sublayers
from keras_coda.conversion import registry
from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.masked_lm import MaskedLMObjective
from keras_coda.training.masked_patches import MaskedPatchesObjective
from keras_coda.training.span_corruption import SpanCorruptionObjective

# The objective of a backbone is that of the tasks that KerasHub has for it.
_OBJECTIVES = {
    keras_hub.models.MaskedLM: MaskedLMObjective,
    keras_hub.models.Seq2SeqLM: SpanCorruptionObjective,
    keras_hub.models.ImageClassifier: MaskedPatchesObjective,
}


def pretrain(
    coda,
    x,
    tokenizer=None,
    sequence_length=512,
    mask_rate=None,
    reduction_factor=512 / 192,
    all_weights=False,
    optimizer=None,
    batch_size=32,
    seed=0,
    **fit_arguments,
):
    """Continues pretraining, so that adapters and routers learn to route.

    The paper's second step, between conversion and fine-tuning, on raw texts
    or images without labels. The objective is the backbone's own:

    - BERT: masked language modelling, with KerasHub's preprocessing.
    - T5: span corruption, `keras_coda.training.corrupt_spans`.
    - ViT: the pixels of masked patches (Xie et al., 2022), each patch
      normalised, on top of the tokens of the last block.

    Adapters, routers and layer normalisations are trained, and the objective's
    head. Texts are cut to `sequence_length`; masks are drawn anew each epoch.

    Args:
        coda: what `keras_coda.coda_wrap` made. A backbone gets a new head for
            the objective; a task for it, such as a converted
            `keras_hub.models.BertMaskedLM`, keeps its own, which is better
            where that is pretrained.
        x: list of str, or an array of images.
        tokenizer: the backbone's KerasHub tokenizer, for texts. Defaults to
            that of the task's preprocessor.
        sequence_length: int. Tokens in a text. Defaults to `512`.
        mask_rate: optional float in (0, 1). Share of the tokens, or patches,
            to mask. Defaults to `0.15` for texts and `0.6` for images.
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
        The `keras.callbacks.History` of `fit`, with the `loss` and, for texts,
        the `accuracy` at the masked tokens.

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
        figure 3; [Xie et al., 2022](https://arxiv.org/abs/2111.09886).
    """
    validate_converted("coda", coda)
    if mask_rate is not None and not 0 < mask_rate < 1:
        raise ValueError(
            "`mask_rate` must lie between 0 and 1: the share of the tokens to "
            f"mask. Received: mask_rate={mask_rate}"
        )
    backbone = backbone_of(coda)
    task_cls, objective_cls = _find_objective(backbone)
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
        batches = _Batches(x, objective.make_batch, batch_size, seed)
        return objective.model.fit(batches, **fit_arguments)
    finally:
        backbone.reduction_factor = own_reduction_factor
        if all_weights:
            backbone.freeze()


def _find_objective(backbone):
    for task_cls in registry.tasks_of(type(backbone)):
        for kind, objective_cls in _OBJECTIVES.items():
            if issubclass(task_cls, kind):
                return task_cls, objective_cls
    raise TypeError(
        "`coda` must have a family with a masked language model, a "
        "sequence-to-sequence model or an image classifier. "
        f"Received: a backbone of type {type(backbone).__name__}"
    )


def _unfreeze(backbone):
    for layer in sublayers(backbone, recursive=True):
        layer.trainable = True
    for weight in backbone.weights:
        weight.trainable = True


class _Batches(keras.utils.PyDataset):
    """Shuffled batches of raw inputs, made anew each epoch."""

    def __init__(self, x, make_batch, batch_size, seed):
        super().__init__()
        self.x = x
        self.make_batch = make_batch
        self.batch_size = batch_size
        self.rng = np.random.default_rng(seed)
        self.order = self.rng.permutation(len(x))

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        return self.make_batch([self.x[i] for i in chosen])

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.x))
