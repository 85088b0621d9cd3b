"""Texts and labels of a CSV file, as a model takes them."""

import csv

import keras_hub
import numpy as np

# What tasks that read two kinds of texts call them.
PAIRS = (
    (keras_hub.models.CausalLM, ("prompts", "responses")),
    (keras_hub.models.Seq2SeqLM, ("encoder_text", "decoder_text")),
)


def add_arguments(add):
    add(
        "--data",
        required=True,
        metavar="TEXTS.csv",
        help="a CSV file in UTF-8 whose first row names the columns",
    )
    add(
        "--text",
        nargs="+",
        metavar="COLUMN",
        help=(
            "one column; two for pairs of texts, prompts and responses, or "
            "what encoder and decoder read; default: the first"
        ),
    )


def read_columns(path, names):
    """Columns of a CSV file, lists of strings, by name."""
    # Documents are longer than what Python takes for a field.
    csv.field_size_limit(2**31 - 1)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            columns = list(reader.fieldnames or ())
            rows = list(reader)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{path!r} is no CSV file in UTF-8: {error}"
            ) from None
    missing = [name for name in names if name not in columns]
    if missing or not columns:
        raise ValueError(
            f"{path!r} has no column {', '.join(map(repr, missing))}. It "
            f"has: {', '.join(map(repr, columns)) or 'none'}."
        )
    names = list(names) or columns[:1]
    for number, row in enumerate(rows, start=1):
        if any(row[name] is None for name in names):
            raise ValueError(
                f"{path!r} has too few columns in row {number} behind the "
                f"first: {list(row.values())}"
            )
    if not rows:
        raise ValueError(f"{path!r} has no rows behind the first.")
    return {name: [row[name] for row in rows] for name in names}


def read_texts(model, path, names):
    """What `predict` and `calibrate` of a task take."""
    preprocessor = getattr(model, "preprocessor", None)
    if getattr(preprocessor, "tokenizer", None) is None:
        raise TypeError(
            "The model must be a KerasHub task with a preprocessor, which "
            "makes tokens of texts. From Python, `keras_coda.training."
            "accelerate` takes tokens, and images, too. Received: "
            f"{type(model).__name__}"
        )
    columns = list(read_columns(path, names or ()).values())
    for task_cls, keys in PAIRS:
        if isinstance(model, task_cls):
            if len(columns) != len(keys):
                raise ValueError(
                    f"{task_cls.__name__} models take two columns, "
                    f"{' and '.join(keys)}: name them with `--text`. "
                    f"Received: {names}"
                )
            return dict(zip(keys, columns))
    if len(columns) > 2:
        raise ValueError(
            f"At most two columns make a text. Received: --text {names}"
        )
    return columns[0] if len(columns) == 1 else tuple(columns)


def read_labels(path, name, num_classes):
    """Class indices, as an array."""
    (values,) = read_columns(path, [name]).values()
    try:
        labels = np.array([int(value) for value in values])
    except ValueError as error:
        raise ValueError(
            f"The column {name!r} of {path!r} must hold the index of a class, "
            f"from 0 to {num_classes - 1}: {error}"
        ) from None
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"The column {name!r} of {path!r} must hold numbers from 0 to "
            f"{num_classes - 1}. It has: {labels.min()} to {labels.max()}"
        )
    return labels
