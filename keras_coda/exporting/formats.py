"""The formats, and which backend can write which.

It asks which backend runs; besides it only `backend_differences.py` does.
"""

import importlib.util
import io
import os
import re
import secrets
import shutil
import warnings
from typing import NamedTuple

import keras

from keras_coda.backend_differences import program_of_torch
from keras_coda.exporting.signature import with_weights_as_inputs

# An ONNX file, a message of Protocol Buffers, ends at 2 GiB. Of them 64 MiB are
# left to the graph.
MAX_ONNX_BYTES = 2**31 - 2**26


class Format(NamedTuple):
    """A kind of artefact.

    Attributes:
        write: function of a named model, a path and input specs.
        suffix: what the path ends with. Empty for a folder.
        backends: the backends under which Keras writes it. The first can do
            all that the format can.
        packages: the modules needed to write it, by the extra that has them.
        dynamic_length: whether an artefact can take any sequence length.
        half_precision: whether an artefact can compute in float16 or bfloat16.
        quantized_inputs: whether an artefact can round what int8 layers take.
    """

    write: object
    suffix: str
    backends: tuple
    packages: dict
    dynamic_length: bool
    half_precision: bool
    quantized_inputs: bool = True


def write_saved_model(model, path, specs, preprocessor=None):
    """Tokens in as `"serve"`; with a preprocessor, strings in by default."""
    archive = keras.export.ExportArchive()
    if preprocessor is not None:
        # Builds it.
        preprocessor(["text"])
        archive.track(preprocessor)
        archive.add_endpoint(
            "serving_default",
            lambda text: model(preprocessor(text), training=False),
            [keras.InputSpec(shape=(None,), dtype="string", name="text")],
        )
    if is_running("jax"):
        archive.track_and_add_endpoint("serve", model, [specs])
    else:
        # Keras 3.15 writes the variables of a model that is tracked twice on
        # TensorFlow; those of an endpoint are written anyway.
        archive.add_endpoint("serve", model.__call__, [specs])
    archive.write_out(path, verbose=False)


def write_onnx(model, path, specs):
    import onnx

    from keras_coda.exporting import tf2onnx_operations

    tf2onnx_operations.register()
    # Each step of tf2onnx copies the constants: 13 GB and more for BERT base.
    # So weights are inputs, and become constants at the end.
    stateless, weights = with_weights_as_inputs(model)
    weight_specs = {
        name: keras.InputSpec(shape=weight.shape, dtype=weight.dtype, name=name)
        for name, weight in weights.items()
    }
    with warnings.catch_warnings():
        # tf2onnx looks up names that NumPy 2 has dropped.
        warnings.filterwarnings("ignore", category=FutureWarning)
        stateless.export(
            path,
            format="onnx",
            verbose=False,
            input_signature=[{**specs, **weight_specs}],
            opset_version=tf2onnx_operations.OPSET_VERSION,
        )
    artefact = onnx.load(path)
    graph = artefact.graph
    # A constant that the model keeps as a tensor, such as the position ids of
    # KerasHub's ViT, is folded and yet left among the inputs.
    for extra in [value for value in graph.input if value.name not in specs]:
        graph.input.remove(extra)
    used = {name for node in graph.node for name in node.input}
    for name in used & weights.keys():
        value = keras.ops.convert_to_numpy(weights[name])
        graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    tf2onnx_operations.fold_constants(graph)
    num_bytes = sum(len(value.raw_data) for value in graph.initializer)
    if num_bytes <= MAX_ONNX_BYTES:
        onnx.save(artefact, path)
    else:
        # A new name, so that no file finds the weights of another;
        # `onnx_weights_beside` finds it.
        weights_path = f"{path}.{secrets.token_hex(4)}.data"
        onnx.save(
            artefact,
            path,
            save_as_external_data=True,
            location=os.path.basename(weights_path),
        )
        # ONNX lets its owner alone read it.
        shutil.copymode(path, weights_path)
    # tf2onnx writes operations that ONNX does not have, and only logs it.
    onnx.checker.check_model(path)


def onnx_weights_beside(path):
    """The paths of weights that are in no ONNX file, but in one beside it."""
    folder, name = os.path.split(os.path.abspath(path))
    pattern = re.compile(rf"{re.escape(name)}\.[0-9a-f]{{8}}\.data")
    return [
        os.path.join(folder, entry)
        for entry in os.listdir(folder)
        if pattern.fullmatch(entry)
    ]


def write_litert(model, path, specs):
    model.export(path, format="litert", verbose=False, input_signature=[specs])


def write_torch(model, path, specs):
    import torch

    # PyTorch's own writer ends the process where the disk is full.
    buffer = io.BytesIO()
    torch.export.save(program_of_torch(model, specs), buffer)
    with open(path, "wb") as file:
        file.write(buffer.getbuffer())


FORMATS = {
    "tf_saved_model": Format(
        write=write_saved_model,
        suffix="",
        backends=("tensorflow", "jax"),
        packages={},
        dynamic_length=True,
        half_precision=True,
    ),
    "onnx": Format(
        write=write_onnx,
        suffix=".onnx",
        backends=("tensorflow",),
        packages={"export": ("onnx", "tf2onnx")},
        dynamic_length=True,
        # ONNX Runtime would load none of it, or fail when it runs.
        half_precision=False,
    ),
    "litert": Format(
        write=write_litert,
        suffix=".tflite",
        backends=("tensorflow",),
        packages={},
        dynamic_length=False,
        # It would need TensorFlow's own operations.
        half_precision=False,
        # Its converter fails.
        quantized_inputs=False,
    ),
    "torch": Format(
        write=write_torch,
        suffix=".pt2",
        backends=("torch",),
        packages={},
        dynamic_length=False,
        half_precision=True,
    ),
}


def format_of(path):
    """The format whose files end like a path; else that of a folder."""
    for name, format in FORMATS.items():
        if format.suffix and path.endswith(format.suffix):
            return name
    return "tf_saved_model"


def writing_backend(format, needs_first):
    """The backend to write a format under: the running one if it can.

    Args:
        format: a key of `FORMATS`.
        needs_first: bool. Whether what is to be written is among what only
            the first of the format's backends can write.
    """
    backends = FORMATS[format].backends
    if needs_first:
        backends = backends[:1]
    running = keras.config.backend()
    return running if running in backends else backends[0]


def is_running(backend):
    return keras.config.backend() == backend


def check_packages(format, backend):
    """Raises an `ImportError` that says how to get what is not installed."""
    packages = {backend: (backend,), **FORMATS[format].packages}
    for extra, modules in packages.items():
        for module in modules:
            if importlib.util.find_spec(module) is None:
                raise ImportError(
                    f"`format={format!r}` needs the package {module!r}. "
                    f"Run `pip install keras-coda[{extra}]`."
                )
