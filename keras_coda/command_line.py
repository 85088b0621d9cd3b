"""The command `keras-coda`: exports and inspects `.keras` files.

    keras-coda inspect model.keras
    keras-coda export model.keras served/1 --sequence-length 128

The backend is that of `KERAS_BACKEND`.
"""

import argparse
import os
import sys
import warnings
import zipfile

import keras
from rich.console import Console
from rich.table import Table

from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.exporting import export
from keras_coda.exporting.formats import FORMATS
from keras_coda.exporting.signature import input_signature
from keras_coda.exporting.signature import named_model


def main(arguments=None):
    """Runs the command; `arguments` are those of the process by default."""
    arguments = _parser().parse_args(arguments)
    try:
        arguments.run(_load(arguments.model), arguments)
    except (
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def _load(path):
    """The model; Keras says of whatever is no model that it is not found."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path!r}.")
    if not path.endswith(".keras") or not _has_model(path):
        raise ValueError(
            "MODEL.keras must be a whole file that `model.save` wrote, with a "
            f"name that ends with '.keras'. Received: {path!r}"
        )
    with warnings.catch_warnings():
        # Which is not needed here.
        warnings.filterwarnings("ignore", "Skipping variable loading for opt")
        return keras.models.load_model(path, compile=False)


def _has_model(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "config.json" in file.namelist()


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-coda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "export", help="write an artefact that is served without Keras"
    )
    command.set_defaults(run=_export)
    add = command.add_argument
    add("model", metavar="MODEL.keras")
    add("path", metavar="OUT", help="a folder, or a file of the format")
    add("--format", choices=FORMATS, default="tf_saved_model")
    add(
        "--sequence-length",
        type=int,
        nargs="+",
        metavar="N",
        help="one, or two for encoder and decoder; default: any length",
    )
    add("--batch-size", type=int, metavar="N", help="default: any batch size")
    add("--outputs", nargs="+", metavar="NAME", help="default: all outputs")
    add(
        "--from-strings",
        action="store_true",
        help="take raw strings, with the tokenizer inside a SavedModel",
    )

    command = commands.add_parser(
        "inspect", help="show what a converted model is made of"
    )
    command.set_defaults(run=_inspect)
    command.add_argument("model", metavar="MODEL.keras")
    return parser


def _export(model, arguments):
    length = arguments.sequence_length
    if length is not None and len(length) == 1:
        (length,) = length
    export(
        model,
        arguments.path,
        format=arguments.format,
        sequence_length=length,
        batch_size=arguments.batch_size,
        outputs=arguments.outputs,
        from_strings=arguments.from_strings,
    )


def _inspect(model, arguments):
    table = Table(title=arguments.model, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in _description(model).items():
        table.add_row(name, str(value))
    Console().print(table)


def _description(model):
    """What `inspect` shows, by name."""
    named = named_model(model)
    backbone = backbone_of(model)
    rows = {"class": type(model).__name__}
    if isinstance(model, CodaModel):
        factors = [
            block.reduction_factor for block in backbone.conditional_blocks
        ]
        summary = model.trainable_summary(print_fn=lambda text: None)
        rows |= {
            "family": type(backbone).dense_cls.__name__,
            "reduction factor of each block": ", ".join(map(str, factors)),
            "attention": backbone.attention,
            "router": backbone.router,
            "prefix tokens": backbone.num_prefix_tokens,
            "adapter size": backbone.adapter_dim,
            "shortcut size": backbone.shortcut_dim or "no shortcuts",
            "LoRA rank": backbone.lora_rank or "no LoRA",
            "trainable parameters": (
                f"{summary.trainable:,} ({summary.percentage:.2f}%)"
            ),
        }
    rows["parameters"] = f"{model.count_params():,}"
    rows["inputs"] = _tensors(input_signature(named))
    rows["outputs"] = _tensors(named.output)
    return rows


def _tensors(specs):
    return "\n".join(
        f"{name}: {tuple(spec.shape)} {spec.dtype}"
        for name, spec in specs.items()
    )
