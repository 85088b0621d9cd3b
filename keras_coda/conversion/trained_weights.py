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
    weights = {
        weight.path: weight
        for layer in backbone.trained_layers()
        for weight in layer.weights
    }
    for layer in lora_layers(backbone):
        weights.update({w.path: w for w in lora_weights(layer)})
    if model is not backbone:
        for weight in head_variables(model):
            weights[f"head/{weight.path}"] = weight
    return weights


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
