"""`keras-coda export`: an artefact that is served without Keras."""

from rich.console import Console

from keras_coda.commands.model_file import load_model
from keras_coda.exporting import export
from keras_coda.exporting.formats import FORMATS


def add_parser(commands):
    parser = commands.add_parser(
        "export", help="write an artefact that is served without Keras"
    )
    add = parser.add_argument
    add("model", metavar="MODEL.keras")
    add("path", metavar="OUT", help="a folder, or a file of the format")
    add("--format", choices=FORMATS, help="default: that which OUT ends like")
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
    return parser


def run(arguments):
    length = arguments.sequence_length
    if length is not None and len(length) == 1:
        (length,) = length
    model = load_model(arguments.model)
    with Console(stderr=True).status("Exporting"):
        export(
            model,
            arguments.path,
            format=arguments.format,
            sequence_length=length,
            batch_size=arguments.batch_size,
            outputs=arguments.outputs,
            from_strings=arguments.from_strings,
        )
