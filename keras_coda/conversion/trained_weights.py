"""Which weights of a converted model are trained and belong to a task."""

import itertools
import re

import keras_hub
from keras import ops

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.layer_names import base_names
from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.layers.partly_frozen import lora_weights


def backbone_of(model):
    """The backbone of a task or of a model around one, or the model itself."""
    if hasattr(model, "backbone"):
        return model.backbone
    if isinstance(model, keras_hub.models.Backbone):
        return model
    inside = [
        layer
        for layer in getattr(model, "layers", ())
        if isinstance(layer, keras_hub.models.Backbone)
    ]
    return inside[0] if len(inside) == 1 else model


def trained_weights(model):
    """The adapters, routers, norms, LoRA and head of a model, by path.

    The paths of a task's head start with `head/`.
    """
    backbone = backbone_of(model)
    trained = [w for x in backbone.trained_layers() for w in x.weights]
    trained += [w for x in lora_layers(backbone) for w in lora_weights(x)]
    weights = name_weights(backbone, trained)
    if model is not backbone:
        for weight in head_variables(model):
            weights[f"head/{weight.path}"] = weight
    return weights


def name_weights(backbone, weights):
    """Names for weights of a converted backbone, for files.

    Their paths, those of nested backbones after the attribute that holds the
    backbone; without what depends on what else was made in the same process:
    the names of backbones, and the numbers of layers and weights without a
    name.

    Returns:
        A dict from name to weight.
    """
    named, nested_ids = {}, set()
    for attribute, nested in backbone.nested_backbones.items():
        ids = {id(weight) for weight in nested.weights}
        inside = [weight for weight in weights if id(weight) in ids]
        nested_ids |= ids
        named |= {
            f"{attribute}/{name}": weight
            for name, weight in name_weights(nested, inside).items()
        }
    prefix = backbone.name_prefix
    if not all(
        weight.path.startswith(prefix)
        for weight in backbone.weights
        if id(weight) not in nested_ids
    ):
        prefix = ""
    bases = base_names(sublayers(backbone, recursive=True))
    own = {}
    for weight in weights:
        if id(weight) in nested_ids:
            continue
        paths = itertools.accumulate(weight.path.split("/"), "{}/{}".format)
        name = "/".join(
            bases.get(path, path.rpartition("/")[-1]) for path in paths
        )
        name = name.removeprefix(prefix)
        name = re.sub(r"/variable_\d+$", "/variable", name)
        # T5's encoder and decoder each have a "self_attention/embeddings".
        while name in own:
            name += "'"
        own[name] = weight
    return own | named


def head_variables(task):
    """The weights of a task that are not its backbone's."""
    backbone_ids = {id(weight) for weight in backbone_of(task).weights}
    return [w for w in task.weights if id(w) not in backbone_ids]


def copy_head(source, target):
    """Copies the head's weights to a task of the same class and settings.

    Raises:
        ValueError: if the head is quantized.
    """
    inside = sublayers(backbone_of(source), recursive=True)
    backbone_ids = {id(layer) for layer in inside}
    quantized = [
        layer.name
        for layer in sublayers(source, recursive=True)
        if layer.quantization_mode and id(layer) not in backbone_ids
    ]
    if quantized:
        raise ValueError(
            "The head of `model` is quantized, and could not be trained. "
            "Quantize the backbone alone, `model.backbone.quantize(...)`, "
            "before a task is converted, or the converted task. "
            f"Received: a task whose layers {quantized} are quantized"
        )
    for source_weight, target_weight in zip(
        head_variables(source), head_variables(target), strict=True
    ):
        # By way of NumPy: on JAX the two would share a buffer, which training
        # either of them gives away.
        target_weight.assign(ops.convert_to_numpy(source_weight))
