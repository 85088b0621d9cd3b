"""Which weights of a converted model are trained and belong to a task."""

from keras import ops

from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.layers.partly_frozen import lora_weights


def backbone_of(model):
    """The backbone of a task, or the backbone itself."""
    return getattr(model, "backbone", model)


def trained_weights(model):
    """The adapters, routers, norms, LoRA and head of a model, by path.

    The paths of a task's head start with `head/`.
    """
    backbone = backbone_of(model)
    weights = _trained_in_backbone(backbone)
    if model is not backbone:
        for weight in head_variables(model):
            weights[f"head/{weight.path}"] = weight
    return weights


def _trained_in_backbone(backbone):
    """By path; those of nested backbones after the backbone's name."""
    weights, nested_ids = {}, set()
    for layer in backbone.layers:
        if hasattr(layer, "trained_layers") and hasattr(layer, "family"):
            inside = _trained_in_backbone(layer)
            nested_ids |= {id(weight) for weight in inside.values()}
            weights |= {
                f"{layer.name}/{path}": weight
                for path, weight in inside.items()
            }
    trained = [w for x in backbone.trained_layers() for w in x.weights]
    trained += [w for x in lora_layers(backbone) for w in lora_weights(x)]
    own = {w.path: w for w in trained if id(w) not in nested_ids}
    return own | weights


def head_variables(task):
    """The weights of a task that are not its backbone's."""
    backbone_ids = {id(weight) for weight in task.backbone.weights}
    return [w for w in task.weights if id(w) not in backbone_ids]


def copy_head(source, target):
    """Copies the head's weights to a task of the same class and settings."""
    for source_weight, target_weight in zip(
        head_variables(source), head_variables(target), strict=True
    ):
        # By way of NumPy: on JAX the two would share a buffer, which training
        # either of them gives away.
        target_weight.assign(ops.convert_to_numpy(source_weight))
