from typing import NamedTuple

from rich.table import Table

from keras_coda.conversion import registry
from keras_coda.conversion.missing import missing_note
from keras_coda.tables import as_text

COLUMNS = ["backbone", "routed", "always routed", "tasks", "exports tested"]


class SupportedModel(NamedTuple):
    """What `coda_wrap` makes of the models of one backbone class.

    Attributes:
        backbone: the name of the dense backbone class.
        routed: what is routed, in words.
        pinned: which tokens are always routed, in words.
        tasks: tuple of the names of the task classes that can be converted.
        exports: tuple of the formats of `keras_coda.export` that are tested.
    """

    backbone: str
    routed: str
    pinned: str
    tasks: tuple
    exports: tuple


class SupportedModels(tuple):
    """A tuple of `SupportedModel` that prints as a table.

    And what the installed KerasHub lacks of what could be in it.
    """

    def __str__(self):
        table = Table(title="Models that keras_coda.coda_wrap converts")
        for column in COLUMNS:
            table.add_column(column)
        for model in self:
            table.add_row(*_cells(model, "\n"))
        return f"{as_text(table, width=110)}\n{missing_note()}".rstrip()

    def to_markdown(self):
        """The table in Markdown, as in `docs/families.md`."""
        lines = [COLUMNS, ["---"] * len(COLUMNS)]
        # Not read as HTML.
        lines += [
            [cell.replace("<", "\\<") for cell in _cells(model, ", ")]
            for model in self
        ]
        lines = [f"| {' | '.join(line)} |" for line in lines]
        return "\n".join(lines) + "\n"


def _cells(model, separator):
    tasks = separator.join(model.tasks) or "none in KerasHub"
    exports = separator.join(model.exports)
    return [model.backbone, model.routed, model.pinned, tasks, exports]


def supported_models():
    """Lists the KerasHub models that `coda_wrap` converts.

    Of the installed KerasHub, and of families that you registered yourself.

    Returns:
        A tuple of `SupportedModel`, in alphabetical order. `print` it for a
        table.

    Example:

    >>> for model in keras_coda.supported_models():
    ...     if model.backbone == "T5Backbone":
    ...         print(model.routed, model.pinned, model.tasks)
    encoder nothing ('T5Seq2SeqLM',)
    """
    return SupportedModels(
        SupportedModel(
            backbone=dense_cls.__name__,
            routed=coda_cls.family.routed,
            pinned=coda_cls.family.pooled,
            exports=coda_cls.family.exports,
            tasks=tuple(
                sorted(
                    task_cls.__name__.removeprefix("Coda")
                    for task_cls in registry.tasks_of(coda_cls)
                )
            ),
        )
        for dense_cls, coda_cls in sorted(
            registry.backbone_classes.items(),
            key=lambda item: item[0].__name__.lower(),
        )
    )
