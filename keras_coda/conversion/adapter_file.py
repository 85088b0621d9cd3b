"""Files with what was trained, and without the frozen backbone.

A safetensors file. Its tensors are the trained weights by path, those of a
task's head under `head/`, and under `backbone/` a few entries of each frozen
weight, to recognise the backbone again. Its metadata are the settings.
"""

import contextlib
import json
import os
import secrets

import keras
import numpy as np
import safetensors
from keras import ops
from safetensors.numpy import save

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.quantization import describe_quantization
from keras_coda.conversion.serialization import is_serialized
from keras_coda.conversion.settings import Settings
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import name_weights
from keras_coda.conversion.trained_weights import trained_weights

FORMAT = "keras_coda_adapter"
FORMAT_VERSION = "1"

# Entries of each frozen weight that the file keeps, evenly spaced.
_NUM_SAMPLES = 16
# A backbone in bfloat16 (8 bits of precision) is still the same backbone.
_SAMPLE_TOLERANCE = 2.0**-7


def save_adapter(model, path):
    """See `CodaModel.save_adapter`."""
    backbone = backbone_of(model)
    tensors = {
        path: _to_float32(weight)
        for path, weight in trained_weights(model).items()
    }
    tensors |= _backbone_samples(backbone)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": json.dumps(_settings(backbone)),
        "reduction_factor": json.dumps(backbone.reduction_factor),
        "quantized": json.dumps(describe_quantization(backbone)),
    }
    _write_whole(path, save(tensors, metadata=metadata))


def load_adapter(model, path):
    """See `CodaModel.load_adapter`."""
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no adapter file {path!r}.")
    metadata, tensors = _read(path)
    backbone = backbone_of(model)
    _check_settings(path, json.loads(metadata["settings"]), _settings(backbone))
    # Once it was whether anything is quantized, true or false.
    quantized = json.loads(metadata.get("quantized", "[]")) or []
    alike = quantized == describe_quantization(backbone)
    _check_backbone(path, tensors, _backbone_samples(backbone, alike), alike)
    weights = trained_weights(model)
    _check_weights(path, tensors, weights)
    # Nothing below can fail, so the model is never left half changed.
    backbone.reduction_factor = json.loads(metadata["reduction_factor"])
    for weight_path, weight in weights.items():
        weight.assign(tensors[weight_path])


def _settings(backbone):
    """What must be the same in the file and the model."""
    config = backbone.get_config()
    # The reduction factor may be changed at any time, and is loaded.
    config.pop("reduction_factor")
    # Adapters move between quantized backbones and those in float.
    config.pop("quantization", None)
    # Tuples become lists, as in a file.
    return json.loads(json.dumps(_flat(config)))


def _flat(config):
    """A config in which what is in a nested model comes after its name."""
    settings = {}
    for key, value in config.items():
        if is_serialized(value):
            settings[f"{key} class"] = value["class_name"]
            settings |= {
                f"{key} {inner_key}": inner
                for inner_key, inner in _flat(value["config"]).items()
            }
        elif key not in ("name", "trainable", "dtype"):
            settings[key] = value
    return settings


def _write_whole(path, content):
    """Writes a file under its name when all of it is there.

    It gets the permissions of any new file, and links stay links. On Linux what
    a process leaves that is killed meanwhile has no name.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}")
    try:
        try:
            _write_nameless(folder, temporary, content)
        except (AttributeError, OSError):
            # Not on Linux, or the file system has no such files.
            with open(temporary, "wb") as file:
                file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _write_nameless(folder, path, content):
    """Writes a file that gets its name when it is written."""
    descriptor = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.link(f"/proc/self/fd/{descriptor}", path)


def _backbone_samples(backbone, of_quantized=True):
    """A few entries of each frozen weight, by name in the file.

    Args:
        of_quantized: bool. Whether also the scales of what is quantized, which
            say which matrix it was made of.
    """
    left_out = {id(weight) for weight in trained_weights(backbone).values()}
    for layer in sublayers(backbone, recursive=True):
        if layer.quantization_mode is not None:
            left_out |= {
                id(weight)
                for weight in layer.weights
                if not _is_comparable(weight, of_quantized)
            }
    frozen = [w for w in backbone.weights if id(w) not in left_out]
    samples = {}
    for name, weight in name_weights(backbone, frozen).items():
        size = int(np.prod(weight.shape))
        positions = np.linspace(0, size - 1, _NUM_SAMPLES).astype("int32")
        # Taken on the device: a frozen weight can be large.
        flat = ops.reshape(ops.convert_to_tensor(weight), (-1,))
        samples[f"backbone/{name}"] = _to_float32(ops.take(flat, positions))
    return samples


def _is_comparable(weight, of_quantized):
    if of_quantized:
        return keras.backend.is_float_dtype(weight.dtype)
    return weight.name == "bias"


def _read(path):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path!r} is not an adapter file, or it is damaged: {error}. "
            "Expected a file that `save_adapter` wrote."
        ) from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path!r} is a safetensors file, but no adapter file of "
            "keras_coda. Expected a file that `save_adapter` wrote. "
            f"Received metadata: {metadata}"
        )
    if metadata["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path!r} has format version {metadata['format_version']}, this "
            f"version of keras_coda reads {FORMAT_VERSION}. Upgrade keras_coda."
        )
    return metadata, tensors


def _check_settings(path, saved, expected):
    # What the file is too old to have.
    for name in ("adapter", "prefix_length"):
        saved.setdefault(name, getattr(Settings, name))
    for key in [*expected, *saved]:
        if saved.get(key) != expected.get(key):
            raise ValueError(
                f"The adapter file {path!r} does not fit the model: it has "
                f"{key}={saved.get(key)!r}, the model has "
                f"{key}={expected.get(key)!r}. Convert the backbone that the "
                "adapter was trained on, with the same settings."
            )


def _check_backbone(path, tensors, samples, alike):
    """Raises a `ValueError` if the file was saved of other frozen weights.

    Args:
        alike: bool. Whether the same weights are quantized in the same way.
    """
    for name, sample in samples.items():
        saved = tensors.get(name)
        if saved is None and not alike:
            continue
        if saved is None or not np.allclose(
            saved, sample, rtol=_SAMPLE_TOLERANCE, atol=1e-6
        ):
            raise ValueError(
                f"The adapter file {path!r} was trained on other pretrained "
                f"weights: {name.removeprefix('backbone/')!r} differs. Load "
                "the backbone from the preset that it was trained on."
            )


def _check_weights(path, tensors, weights):
    saved_paths = [key for key in tensors if not key.startswith("backbone/")]
    for name in [*weights, *saved_paths]:
        saved = tensors[name].shape if name in tensors else "no such weight"
        expected = (
            tuple(weights[name].shape) if name in weights else "no such weight"
        )
        if saved != expected:
            raise ValueError(
                f"The adapter file {path!r} does not fit the model. First "
                f"mismatch: {name!r} has shape {saved} in the file and "
                f"{expected} in the model. A task's head is part of the file: "
                "load it into the same task with the same number of classes."
            )
        tensor = tensors[name]
        if tensor.dtype != "float32" or not np.isfinite(tensor).all():
            raise ValueError(
                f"The adapter file {path!r} is damaged: {name!r} must be "
                f"finite float32 numbers. Received: {tensor.dtype}, "
                f"{np.sum(~np.isfinite(tensor))} of {tensor.size} not finite"
            )


def _to_float32(tensor):
    return np.ascontiguousarray(
        ops.convert_to_numpy(ops.cast(tensor, "float32"))
    )
