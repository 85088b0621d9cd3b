"""Quantized frozen weights: of a converted model, in files and in copies.

Keras quantizes layers and keeps that in their dtype policies. KerasHub writes
these into a backbone's config, but not all of what was asked for, and not all
of its backbones read them again. So a converted backbone's config lists what is
quantized, and what is loaded is quantized alike.
"""

import contextlib
import gc
import json
import re

import keras

from keras_coda._keras_internals import own_dtype_policy
from keras_coda._keras_internals import sublayers
from keras_coda.conversion.trained_weights import name_weights

# Those that need neither data nor training.
MODES = ("int8", "int4")
# What layers that can be quantized call the weight that is.
_MATRICES = ("kernel", "embeddings")


def quantize_frozen(backbone, mode, config=None, filters=None):
    """Quantizes the frozen weights of a converted backbone, in place.

    See `CodaModel.quantize`. Layers that are quantized already stay so.
    """
    if mode not in MODES:
        raise ValueError(_why_not(mode))
    layers = [
        layer
        for layer in _layers_by_matrix(backbone).values()
        if layer.quantization_mode is None and _passes(filters, layer)
    ]
    with _without_garbage_collection():
        for layer in layers:
            # A convolution has nothing to quantize, an adapter refuses.
            with contextlib.suppress(NotImplementedError):
                _quantize(layer, mode, config)
    if all(layer.quantization_mode is None for layer in layers):
        raise ValueError(
            "No layer was quantized: those with frozen weights are quantized "
            "already, or `filters` leaves them out. Received: "
            f"mode={mode!r}, filters={filters!r}"
        )
    backbone.forget_removed()
    backbone.forget_compiled()


def quantize_alike(copy, model):
    """Quantizes the layers of a copy as those of the model are."""
    layers = [sublayers(x, recursive=True) for x in (copy, model)]
    with _without_garbage_collection():
        for layer, original in zip(*layers, strict=True):
            mode = original.quantization_mode
            if mode is not None:
                _quantize(layer, mode, _config(original))


def describe_quantization(backbone):
    """What is quantized in a converted backbone, for its config.

    Returns:
        A list of dicts, one for each way of quantizing, with the keys `mode`,
        `config` (serialised, or `None`) and `weights`: the names in files of
        the weights that are quantized so.
    """
    weights = {}
    for name, layer in _layers_by_matrix(backbone).items():
        mode = layer.quantization_mode
        if mode is not None:
            config = keras.saving.serialize_keras_object(_config(layer))
            way = json.dumps({"mode": mode, "config": config})
            weights.setdefault(way, []).append(name)
    return [{**json.loads(way), "weights": weights[way]} for way in weights]


def restore_quantization(backbone, description):
    """Quantizes what `describe_quantization` described, and nothing else."""
    layers = _layers_by_matrix(backbone)
    with _without_garbage_collection():
        for way in description:
            config = keras.saving.deserialize_keras_object(way["config"])
            for name in way["weights"]:
                _quantize(layers[name], way["mode"], config)
    backbone.forget_removed()


def _quantize(layer, mode, config=None):
    """Quantizes a layer as asked for, or what it quantizes later."""
    if layer.quantization_mode is None:
        own_dtype_policy(layer)
        layer.quantize(mode, config=config)
    elif config is not None:
        # From a dtype policy, which does not say how to quantize the inputs.
        layer.quantization_config = config
        if hasattr(layer, "inputs_quantizer"):
            layer.inputs_quantizer = config.activation_quantizer


@contextlib.contextmanager
def _without_garbage_collection():
    """For each layer Keras collects all there is, in a third of a second."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _config(layer):
    """How a layer was asked to quantize, where that matters."""
    return (
        layer.quantization_config if layer.quantization_mode in MODES else None
    )


def _layers_by_matrix(backbone):
    """The layers that Keras might quantize, by the name of what it would."""
    layers = {}
    for layer in sublayers(backbone, recursive=True):
        # As Keras, which quantizes the innermost layers.
        if not sublayers(layer):
            for weight in layer.weights:
                if weight.name in _MATRICES:
                    layers[id(weight)] = layer, weight
    names = name_weights(backbone, [weight for _, weight in layers.values()])
    return {name: layers[id(weight)][0] for name, weight in names.items()}


def _passes(filters, layer):
    """Whether a layer is among those to quantize, as for Keras."""
    if filters is None:
        return True
    if callable(filters):
        return bool(filters(layer))
    patterns = [filters] if isinstance(filters, str) else filters
    return any(re.search(pattern, layer.name) for pattern in patterns)


def _why_not(mode):
    return (
        f"`mode` must be one of {list(MODES)} for a converted model. Other "
        "modes need data, or, as 'float8', train what they quantize, which is "
        "frozen here: quantize the dense model before it is converted, "
        f"`model.backbone.quantize(...)`. Received: mode={mode!r}"
    )
