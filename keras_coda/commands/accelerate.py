"""`keras-coda accelerate`: a dense model in, a fast one out."""

import json

from keras_coda.commands.data import add_arguments
from keras_coda.commands.data import read_texts
from keras_coda.commands.model_file import load_model
from keras_coda.commands.model_file import save_model
from keras_coda.commands.model_file import validate_output
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.training import accelerate
from keras_coda.training import calibrate
from keras_coda.training.cost import COSTS


def add_parser(commands):
    parser = commands.add_parser(
        "accelerate",
        help="make a fine-tuned model fast, without labels",
        description=(
            "Converts a fine-tuned KerasHub task, chooses what each block "
            "computes, and trains adapters to keep what it computed, without "
            "labels. A model that is converted already is calibrated alone."
        ),
    )
    add = parser.add_argument
    add("model", metavar="MODEL.keras")
    add("path", metavar="OUT.keras")
    add_arguments(add)
    add("--speedup", type=float, default=2.5, help="default: %(default)s")
    add(
        "--cost",
        choices=COSTS,
        default="flops",
        help="what the speedup is of; default: %(default)s",
    )
    add("--epochs", type=int, default=2, help="of training; default: 2")
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--adapter-dim", type=int, default=64, help="default: %(default)s")
    add("--shortcut-dim", type=int, default=64, help="default: %(default)s")
    add(
        "--prompt-length",
        type=int,
        metavar="N",
        help="positions of the prompt, of a language model",
    )
    add("--json", action="store_true", help="print one line of JSON")
    return parser


def run(arguments):
    validate_output(arguments.path)
    model = load_model(arguments.model)
    texts = read_texts(model, arguments.data, arguments.text)
    options = {
        "speedup": arguments.speedup,
        "cost": arguments.cost,
        "batch_size": arguments.batch_size,
        "verbose": int(not arguments.json),
    }
    if isinstance(model, CodaModel):
        fast, calibration = model, calibrate(model, texts, **options)
        if not arguments.json:
            print(calibration)
    else:
        fast, calibration = accelerate(
            model,
            texts,
            epochs=arguments.epochs,
            prompt_length=arguments.prompt_length,
            adapter_dim=arguments.adapter_dim,
            shortcut_dim=arguments.shortcut_dim,
            **options,
        )
    save_model(fast, arguments.path)
    if arguments.json:
        print(json.dumps(_record(calibration, arguments.path)))
    else:
        print(f"Saved to {arguments.path!r}.")


def _record(calibration, path):
    return {
        "path": path,
        "speedup": float(calibration.speedup),
        "cost": calibration.cost,
        "error": float(calibration.error),
        # As text: JSON has no infinity, which is that of a left-out block.
        "reduction_factor": [f"{r:g}" for r in calibration.reduction_factor],
    }
