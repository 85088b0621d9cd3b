"""Making the classes of a family, and registering them."""

import types

import keras
import keras_hub

from keras_coda import models
from keras_coda.conversion import registry
from keras_coda.conversion.causal_block import CausalConditionalBlock
from keras_coda.conversion.causal_lm import CodaCausalLM
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.missing import leave_out


def register_family(family):
    """Makes `coda_wrap` take the backbones of a family, and their tasks.

    For `XBackbone` and each of its KerasHub tasks `XTask` it makes the classes
    `keras_coda.models.CodaXBackbone` and `keras_coda.models.CodaXTask`, which
    Keras and KerasHub find when they load files. Tasks from outside KerasHub
    have to be registered with `register_task`.

    Args:
        family: a `keras_coda.conversion.Family`.

    Returns:
        The `CodaBackbone` subclass, or `None` if the installed KerasHub lacks
        the backbone.

    Raises:
        TypeError: if `family.backbone` is no KerasHub backbone.

    Example:

    >>> class OwnBackbone(keras_hub.models.BertBackbone):
    ...     pass
    >>> family = keras_coda.conversion.Family(OwnBackbone)
    >>> print(keras_coda.conversion.register_family(family).__name__)
    CodaOwnBackbone
    """
    dense_cls = family.backbone
    if isinstance(dense_cls, str):
        dense_cls = getattr(keras_hub.models, family.backbone, None)
        if dense_cls is None:
            leave_out(family.backbone)
            return None
    if not _is_subclass(dense_cls, keras_hub.models.Backbone):
        raise TypeError(
            "`family.backbone` must be a subclass of "
            "`keras_hub.models.Backbone`, or the name of one in "
            f"`keras_hub.models`. Received: {family.backbone!r}"
        )
    coda_cls = _make_class(
        CodaBackbone, dense_cls, {"family": family, "dense_cls": dense_cls}
    )
    registry.backbone_classes[dense_cls] = coda_cls
    tasks = (
        value
        for value in vars(keras_hub.models).values()
        if _is_subclass(value, keras_hub.models.Task)
    )
    # Some have two names.
    for task_cls in dict.fromkeys(tasks):
        if task_cls.backbone_cls is dense_cls:
            register_task(task_cls)
    return coda_cls


def register_task(task_cls):
    """Makes `coda_wrap` take the tasks of a class of your own.

    Args:
        task_cls: a subclass of `keras_hub.models.Task` whose `backbone_cls` is
            the backbone class of a registered family.

    Returns:
        The subclass of `task_cls` that `coda_wrap` makes.

    Raises:
        TypeError: if `task_cls` is something else.

    Example:

    >>> class OwnClassifier(keras_hub.models.BertTextClassifier):
    ...     pass
    >>> print(keras_coda.conversion.register_task(OwnClassifier).__name__)
    CodaOwnClassifier
    """
    is_task = _is_subclass(task_cls, keras_hub.models.Task)
    backbone_cls = is_task and registry.backbone_classes.get(
        task_cls.backbone_cls
    )
    if not backbone_cls:
        raise TypeError(
            "`task_cls` must be a subclass of `keras_hub.models.Task` whose "
            "`backbone_cls` is the backbone class of a registered family. "
            f"Received: task_cls={task_cls!r}"
        )
    mixin = CodaTask
    routes_prompts = issubclass(
        backbone_cls.family.layer_cls, CausalConditionalBlock
    )
    # Sequence-to-sequence models are causal language models of KerasHub too.
    if routes_prompts and issubclass(task_cls, keras_hub.models.CausalLM):
        mixin = CodaCausalLM
    coda_cls = _make_class(mixin, task_cls, {"backbone_cls": backbone_cls})
    registry.task_classes[task_cls] = coda_cls
    return coda_cls


def _make_class(mixin, dense_cls, attributes):
    name = f"Coda{dense_cls.__name__}"

    def fill(namespace):
        namespace.update(
            {
                "__module__": models.__name__,
                "__doc__": f"`{dense_cls.__name__}` with conditional adapters.",
                **attributes,
            }
        )

    coda_cls = types.new_class(name, (mixin, dense_cls), exec_body=fill)
    setattr(models, name, coda_cls)
    models.missing_classes.pop(name, None)
    register = keras.saving.register_keras_serializable(package="keras_coda")
    return register(coda_cls)


def _is_subclass(value, cls):
    return (
        isinstance(value, type)
        and issubclass(value, cls)
        and not issubclass(value, CodaModel)
    )
