import keras_hub

from keras_coda.conversion import registry
from keras_coda.conversion.around import as_functional
from keras_coda.conversion.around import with_backbone
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.family import import_families
from keras_coda.conversion.missing import leave_out_missing_tasks
from keras_coda.conversion.missing import missing_note
from keras_coda.conversion.settings import Settings
from keras_coda.conversion.supported_models import supported_models
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import copy_head
from keras_coda.conversion.unsupported import UNSUPPORTED
from keras_coda.layers.block_settings import takes_settings

import_families()
leave_out_missing_tasks()


@takes_settings(Settings)
def coda_wrap(model, settings):
    """Converts a KerasHub model to conditional adapters (CoDA).

    The pretrained weights are frozen; small adapters and routers are put
    beside them, and only `1 / reduction_factor` of the tokens go through each
    frozen encoder block. Decoder blocks get dense adapters. Adapters, routers
    and layer normalisations are trainable, and the head of a task.

    With `reduction_factor=1` the converted model computes what `model` does,
    unless it gets a prefix.

    The frozen weights are shared with `model`, not copied, and `model`'s own
    layers are frozen with them. Its layer normalisations are copied, so
    training leaves the outputs of `model` as they are.

    Args:
        model: a `keras_hub.models.Backbone` of a supported family; a task with
            one, such as `keras_hub.models.BertTextClassifier`; or a functional
            or sequential `keras.Model` of your own that calls one, with other
            layers before and behind it.
            `keras_coda.supported_models()` lists families and tasks.
        {settings}

    Returns:
        A `keras_coda.CodaBackbone` for a backbone. For a task, a task of the
        same class (a subclass of it) with the same preprocessor and a copy of
        the head, compiled with the task's defaults. For another model, a
        functional one with a converted backbone and copies of its other
        layers, not compiled; change its reduction factor with
        `keras_coda.set_reduction_factor`.

    Raises:
        TypeError: if `model` has no KerasHub backbone of a supported family.
        ValueError: if `model` was converted already, if an argument is out of
            range, or if `adapter` and another argument do not go together.

    Example:

    >>> backbone = keras_hub.models.BertBackbone(
    ...     vocabulary_size=100,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=16,
    ...     intermediate_dim=32,
    ... )
    >>> classifier = keras_hub.models.BertTextClassifier(
    ...     backbone, num_classes=3
    ... )
    >>> classifier = keras_coda.coda_wrap(classifier, reduction_factor=4)
    >>> inputs = {
    ...     "token_ids": np.ones((1, 12), "int32"),
    ...     "segment_ids": np.zeros((1, 12), "int32"),
    ...     "padding_mask": np.ones((1, 12), "int32"),
    ... }
    >>> print(classifier.predict(inputs, verbose=0).shape)
    (1, 3)

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947).
    """
    backbone = backbone_of(model)
    if isinstance(backbone, CodaModel):
        raise ValueError(
            "`model` was converted already. Change its `reduction_factor` "
            "through the property of that name; for other settings convert "
            f"the dense model again. Received: model={model!r}"
        )
    coda_backbone_cls = registry.backbone_classes.get(type(backbone))
    if coda_backbone_cls is None:
        raise TypeError(_why_unsupported(model, backbone))
    if model is backbone:
        return coda_backbone_cls(backbone, **vars(settings))
    if not isinstance(model, keras_hub.models.Task):
        graph = as_functional(
            "model",
            model,
            "Convert its backbone, `keras_coda.coda_wrap(model.backbone)`, and "
            "build the model with the result. ",
        )
        return with_backbone(
            graph, coda_backbone_cls(backbone, **vars(settings))
        )

    coda_task_cls = registry.task_classes.get(type(model))
    if coda_task_cls is None:
        supported = [
            cls.__name__.removeprefix("Coda")
            for cls in registry.tasks_of(coda_backbone_cls)
        ]
        raise TypeError(
            f"`model` must be one of the tasks {supported}. For a task of your "
            "own call `keras_coda.conversion.register_task` with its class, or "
            "convert `model.backbone` and build a model with the result. "
            f"Received: a task of type {type(model).__name__}. "
            f"{missing_note()}".rstrip()
        )
    coda_task = coda_task_cls.from_config(
        {
            **model.get_config(),
            "backbone": coda_backbone_cls(backbone, **vars(settings)),
            "preprocessor": model.preprocessor,
        }
    )
    copy_head(model, coda_task)
    return coda_task


def _why_unsupported(model, backbone):
    received = f"Received: model={model!r} of type {type(model).__name__}"
    if not isinstance(backbone, keras_hub.models.Backbone):
        return (
            "`model` must be a KerasHub backbone or task, or a functional "
            "model that calls one backbone (`backbone(backbone.input)`; from "
            "`backbone.output` on it is not in the model). For a Transformer "
            "of your own, put `keras_coda.layers.ConditionalTransformerBlock` "
            f"around its blocks. {received}"
        )
    name = type(backbone).__name__
    if name in UNSUPPORTED:
        return f"{name} cannot be routed: {UNSUPPORTED[name]}. {received}"
    for dense_cls in type(backbone).__mro__:
        if dense_cls in registry.backbone_classes:
            return (
                f"{name} is a subclass of {dense_cls.__name__}, which is "
                "supported, and may compute something else. If it does not, "
                "register it: `keras_coda.conversion.register_family("
                "dataclasses.replace(keras_coda.models.Coda"
                f"{dense_cls.__name__}.family, backbone={name}))`. {received}"
            )
    return (
        f"{name} is not among the backbones that can be converted. For another "
        "Transformer, put `keras_coda.layers.ConditionalTransformerBlock` "
        "around its blocks, or register its family (docs/adding_a_family.md). "
        f"{received}\n{supported_models()}"
    )
