"""`keras-coda compare`: two models on the same texts."""

import json
import statistics
import time

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from keras_coda.commands.data import add_arguments
from keras_coda.commands.data import read_labels
from keras_coda.commands.data import read_texts
from keras_coda.commands.model_file import load_model
from keras_coda.training.calibrate import has_logits
from keras_coda.training.inputs import preprocess


def add_parser(commands):
    parser = commands.add_parser(
        "compare",
        help="accuracy, agreement and speed of two models, side by side",
        description=(
            "What two classifiers make of the same texts: how many they get "
            "right, if there are labels; how often they agree; and how long a "
            "batch of tokens takes on this machine, called in turn."
        ),
    )
    add = parser.add_argument
    add("first", metavar="A.keras")
    add("second", metavar="B.keras")
    add_arguments(add)
    add(
        "--label",
        metavar="COLUMN",
        help="a column with the index of the right class",
    )
    add("--batch-size", type=int, default=32, help="default: %(default)s")
    add("--rounds", type=int, default=5, help="of timing; default: 5")
    add("--json", action="store_true", help="print one line of JSON")
    return parser


def run(arguments):
    paths = (arguments.first, arguments.second)
    models = [load_model(path) for path in paths]
    num_classes = _num_classes(paths, models)
    labels = None
    if arguments.label is not None:
        labels = read_labels(
            arguments.data, arguments.label, max(num_classes, 2)
        )
    inputs = [_tokens(model, arguments) for model in models]
    with Console(stderr=True).status("Predicting"):
        outputs = [
            model.predict(tokens, batch_size=arguments.batch_size, verbose=0)
            for model, tokens in zip(models, inputs)
        ]
    guesses = list(map(_guesses, models, outputs))
    with Console(stderr=True).status("Timing"):
        seconds = _seconds(models, inputs, arguments)
    records = [
        {"model": path, "seconds a batch": own, "speed": seconds[0] / own}
        for path, own in zip(paths, seconds)
    ]
    if labels is not None:
        for record, guess in zip(records, guesses):
            record["accuracy"] = float(np.mean(guess == labels))
    agreement = float(np.mean(guesses[0] == guesses[1]))
    if arguments.json:
        content = {"models": records, "agreement": agreement}
        print(json.dumps({**content, "texts": len(outputs[0])}))
        return
    _print(records, agreement, len(outputs[0]))


def _num_classes(paths, models):
    """That of both models, before anything is computed."""
    shapes = [getattr(model.output, "shape", ()) for model in models]
    for path, model, shape in zip(paths, models, shapes):
        if len(shape) != 2:
            raise TypeError(
                "Classifiers of texts can be compared, which return a number "
                f"for each class. {path!r} is a {type(model).__name__}"
            )
    first, second = (shape[1] for shape in shapes)
    if first != second:
        raise ValueError(
            "Both models must have the same classes. Received: "
            f"{first} and {second} classes"
        )
    return first


def _tokens(model, arguments):
    """What the model's own preprocessor makes of the texts."""
    texts = read_texts(model, arguments.data, arguments.text)
    tokens = preprocess(model, texts)
    model.preprocessor = None
    return tokens


def _guesses(model, outputs):
    """The class of each text; one number alone says whether it is 1."""
    if outputs.shape[1] > 1:
        return outputs.argmax(axis=1)
    middle = 0 if has_logits(model) else 0.5
    return (outputs[:, 0] > middle).astype("int32")


def _seconds(models, inputs, arguments):
    """Median seconds of a batch of each model, called in turn."""
    seconds = [[] for _ in models]
    batches = [
        keras.tree.map_structure(lambda x: x[: arguments.batch_size], tokens)
        for tokens in inputs
    ]
    for number in range(1 + max(arguments.rounds, 1)):
        for model, batch, times in zip(models, batches, seconds):
            start = time.perf_counter()
            model.predict_on_batch(batch)
            # The first call compiles.
            if number > 0:
                times.append(time.perf_counter() - start)
    return list(map(statistics.median, seconds))


def _print(records, agreement, size):
    table = Table(title=f"{size} texts, {agreement:.1%} classified alike")
    table.add_column("model")
    has_accuracy = "accuracy" in records[0]
    if has_accuracy:
        table.add_column("accuracy", justify="right")
    table.add_column("ms a batch", justify="right")
    table.add_column("times as fast", justify="right")
    for record in records:
        cells = [record["model"]]
        if has_accuracy:
            cells.append(f"{record['accuracy']:.1%}")
        cells.append(f"{1000 * record['seconds a batch']:.1f}")
        cells.append(f"{record['speed']:.2f}")
        table.add_row(*cells)
    Console().print(table)
