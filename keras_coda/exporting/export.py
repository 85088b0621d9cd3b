import contextlib
import math
import os
import shutil
import tempfile

import keras
import keras_hub

from keras_coda.conversion.token_positions import max_positions
from keras_coda.conversion.token_positions import validate_sequence_length
from keras_coda.exporting.formats import FORMATS
from keras_coda.exporting.formats import check_packages
from keras_coda.exporting.formats import format_of
from keras_coda.exporting.formats import is_running
from keras_coda.exporting.formats import onnx_weights_beside
from keras_coda.exporting.formats import write_saved_model
from keras_coda.exporting.formats import writing_backend
from keras_coda.exporting.other_backend import export_under
from keras_coda.exporting.signature import half_precision
from keras_coda.exporting.signature import has_dynamic_length
from keras_coda.exporting.signature import input_signature
from keras_coda.exporting.signature import named_model
from keras_coda.exporting.signature import quantizes_inputs
from keras_coda.validation import validate_choice


def export(
    model,
    path,
    format=None,
    sequence_length=None,
    batch_size=None,
    outputs=None,
    from_strings=False,
    verbose=True,
):
    """Writes a model as an artefact that is served without Keras.

    The artefact holds the forward pass in inference mode, with the weights and
    reduction factors that the model has now. Its inputs have KerasHub's names
    (`token_ids`, `padding_mask`, ..., `images`), its outputs those of the
    model. It is written whole or not at all: a failure leaves what was at
    `path` before. The model is left as it is.

    A format that the running backend cannot write is written by a process of
    its own under a backend that can, to which the model travels as a `.keras`
    file. `docs/exporting.md` has the table.

    Args:
        model: a KerasHub backbone or task, converted or dense, or another
            functional `keras.Model`.
        path: str or path. A folder for `"tf_saved_model"`, else a file that
            ends with `.onnx`, `.tflite` or `.pt2`. What is there is replaced.
            Weights of more than 2 GiB are in a second file beside an ONNX
            file, `NAME.onnx.*.data`, which it has to keep.
        format: optional str, `"tf_saved_model"`, `"onnx"`, `"litert"` or
            `"torch"`. Defaults to `None`, that whose files end like `path`,
            and else `"tf_saved_model"`.
        sequence_length: optional int, or a pair for the encoder and the
            decoder. The one length that the artefact takes. Defaults to
            `None`, any length; `"litert"` and `"torch"` need a number.
        batch_size: optional int. The one batch size that the artefact takes.
            Defaults to `None`, any batch size.
        outputs: optional str or list of str. The outputs to keep, with the
            part of the model that they need, such as
            `"encoder_sequence_output"` for the encoder of T5 alone. Defaults
            to `None`, all.
        from_strings: bool. Whether the default signature of a SavedModel takes
            raw strings, named `text`; the signature `"serve"` takes tokens
            still. For text classifiers and embedders with a preprocessor. The
            server needs the operations of TensorFlow Text. Defaults to
            `False`.
        verbose: bool. Whether to print what is done. Defaults to `True`.

    Raises:
        TypeError: if `model` is no functional `keras.Model`.
        ValueError: if an argument is out of range or does not fit the others.
        ImportError: if a package is missing that writes the format.
        RuntimeError: if the process under another backend fails; with its
            error.

    Example:

    >>> import tempfile
    >>> backbone = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> backbone = keras_coda.coda_wrap(backbone, reduction_factor=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     keras_coda.export(backbone, f"{folder}/vit", verbose=False)
    """
    path = os.fspath(path)
    if format is None:
        format = format_of(path)
    validate_choice("format", format, FORMATS)
    _check_path(path, format)
    named = named_model(model, outputs)
    specs = input_signature(named, sequence_length, batch_size)
    _check_length(named, specs)
    dynamic_length = has_dynamic_length(specs)
    if dynamic_length and not FORMATS[format].dynamic_length:
        raise ValueError(
            f"`format={format!r}` takes one sequence length. Name it with "
            "`sequence_length`, and pad inputs to it, or choose "
            "`format='tf_saved_model'` or 'onnx', which take any. Received: "
            f"sequence_length={sequence_length}"
        )
    if not FORMATS[format].half_precision and half_precision(named):
        raise ValueError(
            f"`format={format!r}` needs a model that computes in float32. "
            "Convert the pretrained model again, loaded with "
            "`dtype='float32'`, and `load_adapter` what `save_adapter` wrote "
            "of this one, or choose `format='tf_saved_model'` or 'torch'. "
            f"Received: a model with layers in {half_precision(named)}"
        )
    if not FORMATS[format].quantized_inputs and quantizes_inputs(named):
        raise ValueError(
            f"`format={format!r}` takes no layers that quantize their inputs. "
            "Quantize the weights alone, `quantize(config=keras.quantizers."
            "Int8QuantizationConfig(activation_quantizer=None))`, or choose "
            "another format. Received: a model that is quantized to int8"
        )
    if format == "torch" and not _slices_positions(named):
        raise ValueError(
            "`format='torch'` of a model with position embeddings needs Keras "
            "3.15 or newer: `pip install --upgrade keras`. "
            f"Received: Keras {keras.__version__}"
        )
    if from_strings:
        preprocessor = _preprocessor(model, format, sequence_length)
    backend = writing_backend(format, dynamic_length or from_strings)
    check_packages(format, backend)

    with _replacing(path) as temporary_path:
        if not is_running(backend):
            export_under(
                backend,
                model,
                temporary_path,
                verbose,
                format=format,
                sequence_length=sequence_length,
                batch_size=batch_size,
                outputs=outputs,
                from_strings=from_strings,
            )
        elif from_strings:
            write_saved_model(named, temporary_path, specs, preprocessor)
        else:
            FORMATS[format].write(named, temporary_path, specs)
    if verbose:
        print(f"Exported {model.name} to {path!r} ({format}).")


def _check_length(model, specs):
    lengths = [
        spec.shape[1]
        for name, spec in specs.items()
        if name.endswith("token_ids") and spec.shape[1] is not None
    ]
    validate_sequence_length(model, max(lengths, default=0))


def _slices_positions(model):
    """Whether PyTorch can trace what a model takes of its positions."""
    version = tuple(map(int, keras.__version__.split(".")[:2]))
    return version >= (3, 15) or max_positions(model) == math.inf


def _check_path(path, format):
    suffix = FORMATS[format].suffix
    if not path.endswith(suffix):
        raise ValueError(
            f"`path` must end with {suffix!r} for `format={format!r}`. "
            f"Received: path={path!r}"
        )
    if suffix:
        replaceable = os.path.isfile(path)
    else:
        replaceable = os.path.isdir(path) and (
            "saved_model.pb" in os.listdir(path) or not os.listdir(path)
        )
    if os.path.exists(path) and not replaceable:
        raise ValueError(
            f"`path` must be new or an artefact of `format={format!r}`, which "
            "is replaced. What is there is something else. "
            f"Received: path={path!r}"
        )


def _preprocessor(model, format, sequence_length):
    """What turns strings into inputs, of its own for the artefact."""
    text_tasks = (
        keras_hub.models.TextClassifier,
        # Which KerasHub 0.29 lacks.
        getattr(keras_hub.models, "TextEmbedder", ()),
    )
    if format != "tf_saved_model":
        raise ValueError(
            "`from_strings` needs `format='tf_saved_model'`, the one format "
            f"with a tokenizer inside. Received: format={format!r}"
        )
    if not isinstance(model, text_tasks) or model.preprocessor is None:
        raise ValueError(
            "`from_strings` needs a text classifier or text embedder of "
            "KerasHub with a preprocessor. "
            f"Received: a model of type {type(model).__name__}"
        )
    config = model.preprocessor.get_config()
    # The tokenizer's config is without its vocabulary.
    config["tokenizer"] = model.preprocessor.tokenizer
    if sequence_length is not None:
        config["sequence_length"] = sequence_length
    return type(model.preprocessor).from_config(config)


@contextlib.contextmanager
def _replacing(path):
    """A path beside `path`, whose content takes its place at the end.

    The weights beside an ONNX file come along.
    """
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, exist_ok=True)
    temporary_folder = tempfile.mkdtemp(dir=folder, prefix=f".{name}.")
    try:
        temporary_path = os.path.join(temporary_folder, name)
        yield temporary_path
        replaced = f"{temporary_path}.replaced"
        is_folder = os.path.isdir(path)
        before = onnx_weights_beside(path)
        # Under names of their own: what is at `path` is whole until the end.
        moved = [
            shutil.move(file, folder)
            for file in onnx_weights_beside(temporary_path)
        ]
        if is_folder:
            # A folder cannot be replaced in one step.
            os.replace(path, replaced)
        try:
            os.replace(temporary_path, path)
        except OSError:
            if is_folder:
                os.replace(replaced, path)
            _remove(moved)
            raise
        _remove(before)
    finally:
        shutil.rmtree(temporary_folder)


def _remove(files):
    for file in files:
        os.remove(file)
