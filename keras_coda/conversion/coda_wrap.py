from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.family import all_subclasses
from keras_coda.conversion.family import import_families
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import copy_head

import_families()


def coda_wrap(
    model,
    reduction_factor=4,
    adapter_dim=64,
    attention="k_to_all",
    router="exact",
    num_prefix_tokens="auto",
    epsilon=0.03,
    adapter_activation="relu",
    adapter_scale=1.0,
    shortcut_dim=None,
    lora_rank=None,
):
    """Converts a KerasHub model to conditional adapters (CoDA).

    The pretrained weights are frozen; small adapters and routers are put
    beside them, and only `1 / reduction_factor` of the tokens go through each
    frozen encoder block. Decoder blocks get dense adapters. Adapters, routers
    and layer normalisations are trainable, and the head of a task.

    With `reduction_factor=1` the converted model computes what `model` does.

    The frozen weights are shared with `model`, not copied, and `model`'s own
    layers are frozen with them. Its layer normalisations are copied, so
    training leaves the outputs of `model` as they are.

    Args:
        model: a `keras_hub.models.Backbone` of a supported family (BERT, T5,
            ViT), or a task with one, such as
            `keras_hub.models.BertTextClassifier`.
        reduction_factor: a number >= 1, or a list with one number for each
            encoder block. Ratio of tokens to routed tokens; can be changed
            later through the property of the same name. Defaults to `4`.
        adapter_dim: int >= 1. Width of the adapters. Defaults to `64`.
        attention: `"k_to_all"`, the routed tokens attend to all tokens
            (better), or `"k_to_k"`, to each other (faster). Defaults to
            `"k_to_all"`.
        router: `"exact"` or `"coordinate_descent"`, the solver of soft top-k,
            or one of the paper's ablations, `"sigmoid"` and `"first_k"`.
            Defaults to `"exact"`.
        num_prefix_tokens: int >= 0. Leading tokens that are always routed;
            `"auto"` takes the token that the family's heads pool (1 for BERT
            and a ViT with class token, 0 for T5). Defaults to `"auto"`.
        epsilon: float > 0. Softness of the routing, in units of the router's
            scores. Defaults to `0.03`.
        adapter_activation: a Keras activation. Defaults to `"relu"`.
        adapter_scale: float. Factor on the adapters' outputs. Defaults to
            `1.0`.
        shortcut_dim: optional int >= 1. Rank of a linear estimate of the
            update that the tokens which are not routed miss; fit it with
            `keras_coda.training.calibrate`. Defaults to `None`, no estimate,
            as in the paper.
        lora_rank: optional int >= 1. Rank of LoRA on the frozen query and
            value projections, trained too. LoRA changes those projections, so
            the backbone is then copied and not shared with `model`. Defaults
            to `None`, no LoRA.

    Returns:
        A `keras_coda.CodaBackbone` for a backbone. For a task, a task of the
        same class (a subclass of it) with the same preprocessor and a copy of
        the head, compiled with the task's defaults.

    Raises:
        TypeError: if `model` is no KerasHub model of a supported family.
        ValueError: if `model` was converted already, or if an argument is out
            of range.

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
    settings = {
        "reduction_factor": reduction_factor,
        "adapter_dim": adapter_dim,
        "attention": attention,
        "router": router,
        "num_prefix_tokens": num_prefix_tokens,
        "epsilon": epsilon,
        "adapter_activation": adapter_activation,
        "adapter_scale": adapter_scale,
        "shortcut_dim": shortcut_dim,
        "lora_rank": lora_rank,
    }
    backbone = backbone_of(model)
    if isinstance(backbone, CodaModel):
        raise ValueError(
            "`model` was converted already. Change its `reduction_factor` "
            "through the property of that name; for other settings convert "
            f"the dense model again. Received: model={model!r}"
        )
    backbone_classes = {
        cls.family.backbone_cls: cls for cls in all_subclasses(CodaBackbone)
    }
    coda_backbone_cls = backbone_classes.get(type(backbone))
    if coda_backbone_cls is None:
        supported = sorted(cls.__name__ for cls in backbone_classes)
        raise TypeError(
            "`model` must be a KerasHub backbone of one of the classes "
            f"{supported}, or a task with one. For another Transformer, put "
            "`keras_coda.layers.ConditionalTransformerBlock` around its "
            "blocks, or add its family (docs/adding_a_family.md). "
            f"Received: model={model!r} of type {type(model).__name__}"
        )
    if model is backbone:
        return coda_backbone_cls(backbone, **settings)

    task_classes = {
        task_cls: cls
        for cls in all_subclasses(CodaTask)
        for task_cls in cls.__bases__
    }
    coda_task_cls = task_classes.get(type(model))
    if coda_task_cls is None:
        supported = sorted(
            cls.__name__ for cls in task_classes if cls is not CodaTask
        )
        raise TypeError(
            f"A task must be one of {supported}. Convert `model.backbone` and "
            "build the task, or a model of your own, with the result. "
            f"Received: a task of type {type(model).__name__}"
        )
    coda_task = coda_task_cls.from_config(
        {
            **model.get_config(),
            "backbone": coda_backbone_cls(backbone, **settings),
            "preprocessor": model.preprocessor,
        }
    )
    copy_head(model, coda_task)
    return coda_task
