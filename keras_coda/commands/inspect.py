"""`keras-coda inspect`: what a model is made of, and what it saves."""

import json

from rich.console import Console
from rich.table import Table

from keras_coda.analysis import flops
from keras_coda.commands.model_file import load_model
from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.registry import backbone_classes
from keras_coda.conversion.trainable_summary import trainable_summary
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.exporting.signature import input_signature
from keras_coda.exporting.signature import named_model


def add_parser(commands):
    parser = commands.add_parser(
        "inspect", help="show what a model is made of, and what it saves"
    )
    add = parser.add_argument
    add("model", metavar="MODEL.keras")
    add(
        "--sequence-length",
        type=int,
        metavar="N",
        help="count multiply-adds at this length, of a converted model; of a "
        "language model, of a prompt of this length",
    )
    add("--json", action="store_true", help="print one line of JSON")
    return parser


def run(arguments):
    model = load_model(arguments.model)
    description = _description(model)
    counted = None
    if arguments.sequence_length is not None:
        if hasattr(model, "prompt_length"):
            # A length below 0 is refused by its own name, in `flops`.
            model.prompt_length = max(arguments.sequence_length, 0)
        counted = flops(model, arguments.sequence_length)
        description["speedup by arithmetic"] = f"{counted.ratio:.2f}"
    if arguments.json:
        print(json.dumps({"model": arguments.model, **description}))
        return
    table = Table(title=arguments.model, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for name, value in description.items():
        table.add_row(name, str(value))
    Console().print(table)
    if counted is not None:
        print(counted)


def _description(model):
    """What is shown, by name."""
    named = named_model(model)
    backbone = backbone_of(model)
    rows = {"class": type(model).__name__}
    if isinstance(backbone, CodaModel):
        factors = [
            block.reduction_factor for block in backbone.conditional_blocks
        ]
        summary = trainable_summary(model, print_fn=lambda text: None)
        rows |= {
            "family": type(backbone).dense_cls.__name__,
            "reduction factor of each block": ", ".join(map(str, factors)),
            "attention": backbone.attention,
            "router": backbone.router,
            "prefix tokens": backbone.num_prefix_tokens,
            "adapter": backbone.adapter,
            "adapter size": backbone.adapter_dim,
            "shortcut size": backbone.shortcut_dim or "no shortcuts",
            "LoRA rank": backbone.lora_rank or "no LoRA",
            "trainable parameters": (
                f"{summary.trainable:,} ({summary.percentage:.2f}%)"
            ),
        }
    else:
        converts = type(backbone) in backbone_classes
        rows["converts"] = (
            "yes, see `keras_coda.training.accelerate`" if converts else "no"
        )
    rows["parameters"] = f"{model.count_params():,}"
    rows["inputs"] = _tensors(input_signature(named))
    rows["outputs"] = _tensors(named.output)
    return rows


def _tensors(specs):
    return "\n".join(
        f"{name}: {tuple(spec.shape)} {spec.dtype}"
        for name, spec in specs.items()
    )
