from typing import NamedTuple

from rich.table import Table

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers import ParallelAdapter
from keras_coda.layers import Prefix
from keras_coda.layers import TokenRouter
from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.layers.partly_frozen import lora_weights
from keras_coda.tables import as_text


class TrainableSummary(NamedTuple):
    """Numbers of parameters; see `CodaBackbone.trainable_summary`."""

    trainable: int
    frozen: int
    percentage: float
    parts: dict


def trainable_summary(model, print_fn=None):
    """Prints and returns how many parameters of a model are trained."""
    backbone = backbone_of(model)
    parts = {
        "adapters": 0,
        "routers": 0,
        "layer norms": 0,
        "LoRA": 0,
        "task head": 0,
    }
    part_of = {
        id(weight): "LoRA"
        for layer in lora_layers(backbone)
        for weight in lora_weights(layer)
    }
    for layer in backbone.trained_layers():
        part = _part(layer)
        part_of.update({id(weight): part for weight in layer.weights})
    trainable_ids = {id(weight) for weight in model.trainable_weights}
    frozen = 0
    for weight in model.weights:
        size = _size(weight)
        if id(weight) in trainable_ids:
            parts[part_of.get(id(weight), "task head")] += size
        else:
            frozen += size
    trainable = sum(parts.values())
    percentage = 100.0 * trainable / (trainable + frozen)
    summary = TrainableSummary(trainable, frozen, percentage, parts)
    (print_fn or print)(_table(model.name, summary))
    return summary


def _part(layer):
    if isinstance(layer, (ParallelAdapter, Prefix)):
        return "adapters"
    return "routers" if isinstance(layer, TokenRouter) else "layer norms"


def _size(weight):
    size = 1
    for dim in weight.shape:
        size *= dim
    return size


def _table(name, summary):
    total = summary.trainable + summary.frozen
    table = Table(title=f"Parameters of {name}", show_footer=True)
    table.add_column("Part", footer="total")
    table.add_column("Parameters", justify="right", footer=f"{total:,}")
    table.add_column("Share", justify="right", footer="100.00%")
    rows = {
        **{part: size for part, size in summary.parts.items() if size},
        "trainable": summary.trainable,
        "frozen": summary.frozen,
    }
    for part, size in rows.items():
        if part == "trainable":
            table.add_section()
        table.add_row(part, f"{size:,}", f"{100 * size / total:.2f}%")
    return as_text(table, width=60)
