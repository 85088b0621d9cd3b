"""Accuracy of CoDA and its alternatives, on real data with real weights.

    KERAS_BACKEND=torch python benchmarks/quality.py
    KERAS_BACKEND=torch python benchmarks/quality.py --rows coda,dense --seeds 0

Fine-tunes all-MiniLM-L6-v2 on topics and pairs of Reuters R52, and a small ViT
on Fashion-MNIST (see quality_tasks.py), in each of the ways that ROWS lists.
Every row has the same data, trained head and number of steps. CoDA has
two stages: dense adapters, which are trained once for all rows of a seed, and
then at the reduction factor, with another learning rate schedule. A row of one
stage trains at the reduction factor all the time, and a dense row at 1.
Training without labels, of the second stage or as steps on top of it, takes as
many steps as the second stage, on other inputs from the same split.

Writes quality.json, quality.md and quality.png. Each finished run is written at
once: a killed benchmark goes on where it stopped, and two may share a folder.
"""

import argparse
import json
import pathlib
import statistics
import time
from typing import NamedTuple

import keras
import numpy as np
import quality_tasks
import rich.progress
import timing

import keras_coda
from keras_coda.callbacks import ElasticReduction
from keras_coda.callbacks import ReductionSchedule
from keras_coda.conversion.trained_weights import trained_weights

ELASTIC_REDUCTION_FACTORS = (1, 2, 3, 5)


class Row(NamedTuple):
    """One way to fine-tune.

    Attributes:
        text: what the table calls it.
        settings: arguments of `coda_wrap` besides the reduction factor, or
            `None` for a model that is not converted.
        recipe: the steps before, with or instead of two stages, see `train`.
    """

    text: str
    settings: dict | None = {}
    recipe: tuple = ()

    @property
    def reduction_factors(self):
        """Those it is run at, or `None` for all that were asked for."""
        return (1.0,) if "dense" in self.recipe else None


SHORTCUT = {"shortcut_dim": 64}
ROWS = {
    "head": Row("frozen backbone, head alone", None, ("dense", "freeze")),
    "dense": Row("parallel adapters, dense", {}, ("dense",)),
    "dense_first": Row(
        "parallel adapters, dense, first stage alone",
        {},
        ("dense", "first stage alone"),
    ),
    "full": Row("full fine-tuning", None, ("dense",)),
    "lora": Row("KerasHub LoRA, rank 8", None, ("dense", "lora")),
    "coda": Row("CoDA k_to_all"),
    "k_to_k": Row("CoDA k_to_k", {"attention": "k_to_k"}),
    "sigmoid": Row("CoDA, sigmoid router", {"router": "sigmoid"}),
    "first_k": Row("truncation (first k)", {"router": "first_k"}),
    "descent": Row(
        "CoDA, coordinate descent", {"router": "coordinate_descent"}
    ),
    "no_prefix": Row("CoDA, CLS not always routed", {"num_prefix_tokens": 0}),
    "soft": Row("CoDA, epsilon 0.3", {"epsilon": 0.3}),
    "calibrate_routers": Row("CoDA, calibrated routers", {}, ("calibrate",)),
    "calibrate_alone": Row(
        "CoDA, calibrated, first stage alone",
        SHORTCUT,
        ("calibrate", "first stage alone"),
    ),
    "calibrate": Row("CoDA, calibrated", SHORTCUT, ("calibrate",)),
    "calibrate_k_to_k": Row(
        "CoDA k_to_k, calibrated",
        {"attention": "k_to_k", **SHORTCUT},
        ("calibrate",),
    ),
    "calibrate_sigmoid": Row(
        "CoDA, sigmoid router, calibrated",
        {"router": "sigmoid", **SHORTCUT},
        ("calibrate",),
    ),
    "calibrate_first_k": Row(
        "truncation, calibrated shortcuts",
        {"router": "first_k", **SHORTCUT},
        ("calibrate",),
    ),
    "best": Row(
        "CoDA, calibrated, last block CLS alone",
        SHORTCUT,
        ("calibrate", "last block CLS"),
    ),
    "lora_rank": Row("CoDA + LoRA, rank 8", {"lora_rank": 8}),
    "distill": Row("CoDA, second stage without labels", SHORTCUT, ("distill",)),
    "best_distill": Row(
        "CoDA, second stage without labels, last block CLS alone",
        SHORTCUT,
        ("distill", "last block CLS"),
    ),
    "sudden": Row("CoDA, one stage", {}, ("one stage",)),
    "anneal": Row(
        "CoDA, one stage, annealed over 15%", {}, ("one stage", "anneal")
    ),
    "half": Row(
        "CoDA, one stage, annealed over 50%", {}, ("one stage", "half")
    ),
    "align": Row(
        "CoDA, aligned without labels, then one stage",
        {},
        ("align", "one stage"),
    ),
    "pretrain": Row(
        "CoDA, masked LM, then one stage", {}, ("pretrain", "one stage")
    ),
    "elastic": Row(
        "CoDA, one model for r = 1, 2, 3, 5", SHORTCUT, ("calibrate", "elastic")
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
    add("--tasks", default=",".join(quality_tasks.TASKS), help="default: all")
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--reduction-factors", default="3,5", help="default: %(default)s")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--train-size", type=int, default=1500)
    add("--test-size", type=int, default=1000)
    add("--first-epochs", type=int, default=3, help="dense")
    add("--second-epochs", type=int, default=3, help="at the reduction factor")
    add("--vision-epochs", type=int, default=8, help="of the dense ViT")
    add("--batch-size", type=int, default=32)
    add("--sequence-length", type=int, default=128)
    add("--learning-rate", type=float, default=3e-3, help="first stage")
    add("--second-learning-rate", type=float, default=1e-3)
    add(
        "--output",
        type=pathlib.Path,
        default=timing.RESULTS,
    )
    add("--quick", action="store_true", help="a minute, and no meaning")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.tasks, arguments.rows = "pairs", "dense,coda,distill,elastic"
        arguments.reduction_factors, arguments.seeds = "4", "0"
        arguments.train_size = arguments.test_size = 32
        arguments.first_epochs = arguments.second_epochs = 1
        arguments.sequence_length = 16
    return arguments


# === Training ===


def train(experiment, task, arguments):
    """Fine-tunes one row; returns the model and what to note about it."""
    row = ROWS[experiment.row]
    keras.utils.set_random_seed(experiment.seed)
    dense = task.make_dense()
    if row.settings is None:
        return train_unconverted(dense, experiment, task, arguments)
    model, notes = convert(experiment, dense), {}
    sample = keras.tree.map_structure(
        lambda values: values[:384], task.unlabelled
    )
    unlabelled = {
        "optimizer": quality_tasks.make_optimizer(
            arguments.second_learning_rate,
            len(task.raw),
            1,
            arguments.batch_size,
        ),
        "batch_size": arguments.batch_size,
        "verbose": 0,
    }
    if "align" in row.recipe:
        history = keras_coda.training.align(
            model, dense, task.unlabelled, **unlabelled
        )
        notes["unlabelled"] = history.history
    if "pretrain" in row.recipe:
        history = keras_coda.training.pretrain(
            model,
            task.raw,
            tokenizer=task.tokenizer,
            sequence_length=arguments.sequence_length,
            reduction_factor=experiment.reduction_factor,
            **unlabelled,
        )
        notes["unlabelled"] = history.history
    if "one stage" in row.recipe:
        callbacks = []
        if "anneal" in row.recipe:
            callbacks.append(ReductionSchedule(verbose=0))
        if "half" in row.recipe:
            callbacks.append(ReductionSchedule(fraction=0.5, verbose=0))
        notes["train_accuracy"] = fit(
            model,
            task,
            arguments,
            experiment.seed,
            arguments.first_epochs + arguments.second_epochs,
            arguments.learning_rate,
            callbacks,
        )
        return model, notes

    first = first_stage(experiment.seed, task, arguments)
    for path, weight in trained_weights(model).items():
        if path in first and "router" not in path:
            weight.assign(first[path])
    if "distill" in row.recipe:
        keras_coda.training.calibrate(model, sample)
        history = keras_coda.training.align(
            model,
            dense,
            task.unlabelled,
            target="fine_tuned",
            logits_weight=1.0,
            **unlabelled,
        )
        notes["unlabelled"] = history.history
        return model, notes
    if "calibrate" in row.recipe:
        notes["fitted"] = keras_coda.training.calibrate(model, sample)
    if "first stage alone" in row.recipe:
        return model, notes
    callbacks = []
    if "elastic" in row.recipe:
        callbacks.append(ElasticReduction(ELASTIC_REDUCTION_FACTORS))
    notes["train_accuracy"] = fit(
        model,
        task,
        arguments,
        experiment.seed,
        arguments.second_epochs,
        arguments.second_learning_rate,
        callbacks,
    )
    return model, notes


def first_stage(seed, task, arguments):
    """The weights of the dense parallel adapters after the first stage.

    All rows with two stages go on from them.
    """
    if seed not in task.first_stages:
        model = keras_coda.coda_wrap(task.make_dense(), reduction_factor=1)
        fit(
            model,
            task,
            arguments,
            seed,
            arguments.first_epochs,
            arguments.learning_rate,
        )
        task.first_stages[seed] = {
            path: keras.ops.convert_to_numpy(weight)
            for path, weight in trained_weights(model).items()
        }
    return task.first_stages[seed]


def train_unconverted(model, experiment, task, arguments):
    recipe = ROWS[experiment.row].recipe
    learning_rate = arguments.learning_rate / 10
    if "freeze" in recipe:
        model.backbone.trainable = False
        learning_rate *= 50
    if "lora" in recipe:
        model.backbone.enable_lora(8)
        learning_rate *= 10
    accuracies = fit(
        model,
        task,
        arguments,
        experiment.seed,
        arguments.first_epochs + arguments.second_epochs,
        learning_rate,
    )
    return model, {"train_accuracy": accuracies}


def fit(model, task, arguments, seed, epochs, learning_rate, callbacks=()):
    return quality_tasks.compile_and_fit(
        model,
        *task.train,
        epochs,
        arguments.batch_size,
        learning_rate,
        seed,
        callbacks,
    )


def convert(experiment, dense):
    row = ROWS[experiment.row]
    model = keras_coda.coda_wrap(
        dense, reduction_factor=experiment.reduction_factor, **row.settings
    )
    if "last block CLS" in row.recipe:
        # The head reads nothing else of the last block. What that saves goes to
        # the others, so that all together route as many tokens as at r.
        num_others = len(model.backbone.conditional_blocks) - 1
        others = experiment.reduction_factor * num_others / (num_others + 1)
        model.reduction_factor = [others] * num_others + [10000]
    return model


def accuracy(model, task):
    inputs, labels = task.test
    logits = model.predict(inputs, batch_size=64, verbose=0)
    return float(np.mean(logits.argmax(-1) == labels))


def measure_speedup(model, task, num_rounds=7):
    """Speed of `predict` relative to the dense parallel adapters."""
    reference = keras_coda.coda_wrap(task.make_dense(), reduction_factor=1)
    batch = keras.tree.map_structure(lambda v: v[:64], task.test[0])
    seconds = {id(reference): [], id(model): []}
    for number in range(num_rounds + 1):
        for candidate in (reference, model):
            start = time.perf_counter()
            candidate.predict_on_batch(batch)
            # The first round compiles.
            if number:
                elapsed = time.perf_counter() - start
                seconds[id(candidate)].append(elapsed)
    return statistics.median(seconds[id(reference)]) / statistics.median(
        seconds[id(model)]
    )


def run(experiment, task, arguments):
    """One or, for an elastic model, several results by key."""
    start = time.monotonic()
    model, notes = train(experiment, task, arguments)
    notes["seconds"] = time.monotonic() - start
    notes["trainable"] = sum(
        int(np.prod(weight.shape)) for weight in model.trainable_weights
    )
    reduction_factors = [experiment.reduction_factor]
    if "elastic" in ROWS[experiment.row].recipe:
        reduction_factors = ELASTIC_REDUCTION_FACTORS
    results = {}
    for reduction_factor in reduction_factors:
        if len(reduction_factors) > 1:
            model.reduction_factor = reduction_factor
        key = experiment._replace(reduction_factor=float(reduction_factor)).key
        results[key] = {
            "accuracy": accuracy(model, task),
            "speedup": measure_speedup(model, task),
            **notes,
        }
    return results


# === Results ===


def read_runs(path, setup):
    """The runs that are there already, of this process or another."""
    if not path.exists():
        return {}
    earlier = json.loads(path.read_text())
    if earlier["setup"] != setup:
        raise SystemExit(
            f"error: {path} holds runs of another setup, {earlier['setup']}. "
            "Name another --output."
        )
    return earlier["runs"]


def summarize(runs):
    """One record for each task, reduction factor and row, in order."""
    groups = {}
    for key, result in runs.items():
        task, row, reduction_factor, _ = key.split("/")
        group = (task, float(reduction_factor), row)
        groups.setdefault(group, []).append(result)
    tasks, rows = list(quality_tasks.TASKS), list(ROWS)
    records = []
    for (task, reduction_factor, row), results in sorted(
        groups.items(),
        key=lambda item: (
            tasks.index(item[0][0]),
            item[0][1],
            rows.index(item[0][2]),
        ),
    ):
        accuracies = [100 * result["accuracy"] for result in results]
        records.append(
            {
                "task": task,
                "r": reduction_factor,
                "row": ROWS[row].text,
                "accuracy": statistics.mean(accuracies),
                "spread": max(accuracies) - min(accuracies),
                "seeds": len(results),
                "trainable": results[0]["trainable"],
                "speedup": statistics.median(r["speedup"] for r in results),
            }
        )
    return records


def plot(records, path):
    """Accuracy against speedup, a panel for each task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(record["task"] for record in records))
    figure = Figure(figsize=(7 * len(tasks), 5), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    names = list(dict.fromkeys(record["row"] for record in records))
    for panel, task in zip(panels, tasks):
        for index, name in enumerate(names):
            points = [
                record
                for record in records
                if record["task"] == task and record["row"] == name
            ]
            panel.plot(
                [point["speedup"] for point in points],
                [point["accuracy"] for point in points],
                marker="osD^vP*X<>"[index // 10 % 10],
                color=f"C{index % 10}",
                label=name if points else None,
            )
        panel.set_title(task)
        panel.set_xlabel("speed of predict, dense adapters = 1")
        panel.set_ylabel("test accuracy, %")
        panel.legend(fontsize="xx-small")
    figure.savefig(path, dpi=100)


def main():
    arguments = parse_arguments()
    path = arguments.output / "quality.json"
    setup = {
        name: getattr(arguments, name)
        for name in (
            "train_size",
            "test_size",
            "first_epochs",
            "second_epochs",
            "vision_epochs",
            "batch_size",
            "sequence_length",
            "learning_rate",
            "second_learning_rate",
        )
    }
    runs = read_runs(path, setup)
    asked = [float(r) for r in arguments.reduction_factors.split(",")]
    experiments = [
        Experiment(task, row, reduction_factor, int(seed))
        for seed in arguments.seeds.split(",")
        for task in arguments.tasks.split(",")
        for row in arguments.rows.split(",")
        for reduction_factor in ROWS[row].reduction_factors or asked
    ]
    # One elastic run is for all reduction factors.
    experiments = [
        experiment
        for experiment in experiments
        if not (experiment.row == "elastic" and experiment[2] != asked[0])
    ]
    tasks = {}
    with rich.progress.Progress() as progress:
        bar = progress.add_task("", total=len(experiments))
        for experiment in experiments:
            progress.update(bar, description=experiment.key)
            runs = read_runs(path, setup)
            is_done = experiment.key in runs
            if experiment.row == "elastic":
                prefix = f"{experiment.task}/elastic/"
                suffix = f"/{experiment.seed}"
                is_done = any(
                    key.startswith(prefix) and key.endswith(suffix)
                    for key in runs
                )
            if not is_done:
                name = experiment.task
                if name not in tasks:
                    task_cls = quality_tasks.TASKS[name]
                    tasks[name] = task_cls(name, arguments)
                keras.backend.clear_session()
                results = run(experiment, tasks[name], arguments)
                # Another process may have added some meanwhile.
                runs = {**read_runs(path, setup), **results}
                timing.write_json(
                    path,
                    {
                        "setup": setup,
                        "versions": timing.versions(),
                        "runs": runs,
                    },
                )
                for key, result in results.items():
                    progress.console.print(
                        f"{key}: {result['accuracy']:.1%}, "
                        f"{result['speedup']:.2f}x, "
                        f"{result['seconds']:.0f} s"
                    )
            progress.advance(bar)
    records = summarize(runs)
    table = timing.markdown_table(records)
    timing.write(path.with_suffix(".md"), table)
    plot(records, path.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
