"""Accuracy of CoDA and its alternatives, on real data with real weights.

    KERAS_BACKEND=torch python benchmarks/quality.py
    KERAS_BACKEND=torch python benchmarks/quality.py --rows coda,dense --seeds 0

Fine-tunes all-MiniLM-L6-v2 on topics and pairs of Reuters R52, and a small ViT
on Fashion-MNIST (see quality_tasks.py), in each of the ways that ROWS lists.
Every row has the same labelled data, head to start from, and number of epochs;
where ROWS says "and", what follows comes on top. Unless a row says otherwise,
CoDA is fine-tuned as dense adapters, which is done once for all rows of a seed,
and calibrated for its reduction factor. Training without labels takes as many
steps as fine-tuning, on other inputs from the same split.

Training and accuracy are in mixed bfloat16 (`--dtype`), which takes a third of
the time on processors that have it; speed is measured in float32.

Writes quality.json, quality.md and quality.png. Each finished run is written at
once: a killed benchmark goes on where it stopped, and two may share a folder.
Speed is measured last, of all rows that have none: keep the machine idle then.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time
from typing import NamedTuple

import bookkeeping
import keras
import numpy as np
import quality_tasks
import rich.progress
import timing

import keras_coda
from keras_coda.callbacks import ElasticReduction
from keras_coda.callbacks import ReductionSchedule
from keras_coda.conversion.trained_weights import trained_weights

ALL_REDUCTION_FACTORS = (1, 2, 3, 5)


class Row(NamedTuple):
    """One way to fine-tune.

    Attributes:
        text: what the table calls it.
        settings: arguments of `coda_wrap` besides the reduction factor, or
            `None` for a model that is not converted.
        recipe: what is done, see `train`.
        is_repeated: whether it is run at every reduction factor, or at the
            first alone.
    """

    text: str
    settings: dict | None
    recipe: tuple = ()
    is_repeated: bool = False

    def reduction_factors(self, asked):
        if self.settings is None or "dense" in self.recipe:
            return [1.0]
        return asked if self.is_repeated else asked[:1]


def calibrated(text, *recipe, is_repeated=True, **settings):
    settings = {"shortcut_dim": 64, **settings}
    return Row(text, settings, ("calibrate", *recipe), is_repeated)


ROWS = {
    "head": Row("frozen backbone, head alone", None, ("freeze",)),
    "dense": Row("parallel adapters, dense", {}, ("dense",)),
    "full": Row("full fine-tuning", None),
    "lora": Row("KerasHub LoRA, rank 8", None, ("lora",)),
    "coda": calibrated("CoDA k_to_all"),
    "k_to_k": calibrated("CoDA k_to_k", attention="k_to_k"),
    "sigmoid": calibrated("CoDA, sigmoid router", router="sigmoid"),
    "first_k": calibrated("truncation (first k)", router="first_k"),
    "descent": calibrated(
        "CoDA, coordinate descent", router="coordinate_descent"
    ),
    "no_prefix": calibrated("CoDA, CLS not always routed", num_prefix_tokens=0),
    "no_shortcut": calibrated("CoDA without shortcuts", shortcut_dim=None),
    "last_cls": calibrated("CoDA, last block CLS alone", "last block CLS"),
    "labels": calibrated("CoDA k_to_all, and an epoch at r", "more epochs"),
    "k_to_k_labels": calibrated(
        "CoDA k_to_k, and an epoch at r", "more epochs", attention="k_to_k"
    ),
    "distill": calibrated("CoDA k_to_all, aligned to its r = 1", "distill"),
    "k_to_k_distill": calibrated(
        "CoDA k_to_k, aligned to its r = 1", "distill", attention="k_to_k"
    ),
    "sigmoid_distill": calibrated(
        "CoDA, sigmoid router, aligned to its r = 1",
        "distill",
        router="sigmoid",
    ),
    "first_k_distill": calibrated(
        "truncation (first k), aligned to its r = 1",
        "distill",
        router="first_k",
    ),
    "deploy": calibrated(
        "CoDA, deployed at other r", "every r", is_repeated=False
    ),
    "elastic": calibrated(
        "CoDA, and an epoch at r = 1, 2, 3, 5 in turn",
        "more epochs",
        "elastic",
        "every r",
        is_repeated=False,
    ),
    "one_stage": Row("CoDA, trained at r", {}, ("one stage",)),
    "anneal": Row(
        "CoDA, trained at r, annealed over 15%", {}, ("one stage", "anneal")
    ),
    "align": Row("CoDA, aligned, and trained at r", {}, ("align", "one stage")),
    "pretrain": Row(
        "CoDA, pretrained, and trained at r", {}, ("pretrain", "one stage")
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
    add("--epochs", type=int, default=3)
    add("--more-epochs", type=int, default=1, help="of the rows that say so")
    add("--vision-epochs", type=int, default=8, help="of the ViT, before")
    add("--batch-size", type=int, default=32)
    add("--sequence-length", type=int, default=128)
    add("--learning-rate", type=float, default=3e-3)
    add("--second-learning-rate", type=float, default=1e-3, help="after it")
    add("--dtype", default="mixed_bfloat16", help="default: %(default)s")
    add("--num-rounds", type=int, default=7, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add(
        "--output",
        type=pathlib.Path,
        default=timing.RESULTS,
    )
    add("--quick", action="store_true", help="a minute, and no meaning")
    return timing.parse_arguments(
        parser,
        tasks="pairs",
        rows="dense,coda,distill,elastic",
        reduction_factors="4",
        seeds="0",
        train_size=16,
        test_size=16,
        epochs=1,
        sequence_length=16,
        num_rounds=1,
        # bfloat16 is slow where the processor has none.
        dtype="float32",
    )


# === Training ===


def train(experiment, task, arguments):
    """Fine-tunes one row; returns the model and what to note about it."""
    row = ROWS[experiment.row]
    keras.utils.set_random_seed(experiment.seed)
    model = make_model(experiment, task)
    fit = functools.partial(fine_tune, model, task, arguments, experiment.seed)
    if row.settings is None:
        # The head is trained already.
        if "freeze" not in row.recipe:
            rate = arguments.learning_rate
            fit(arguments.epochs, rate if "lora" in row.recipe else rate / 10)
        return model, {}
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
    notes = {}
    if "align" in row.recipe:
        history = keras_coda.training.align(
            model, task.make_dense(), task.unlabelled, **unlabelled
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
        schedule = [ReductionSchedule(verbose=0)] * ("anneal" in row.recipe)
        fit(arguments.epochs, arguments.learning_rate, schedule)
        return model, notes

    first = first_stage(experiment.seed, task, arguments)
    for path, weight in trained_weights(model).items():
        if path in first and "router" not in path:
            weight.assign(first[path])
    if "calibrate" in row.recipe:
        sample = keras.tree.map_structure(
            lambda values: values[:384], task.unlabelled
        )
        calibration = keras_coda.training.calibrate(model, sample, verbose=0)
        notes["fitted"] = calibration.blocks
    if "distill" in row.recipe:
        history = keras_coda.training.align(
            model,
            task.make_dense(),
            task.unlabelled,
            target="fine_tuned",
            logits_weight=1.0,
            **unlabelled,
        )
        notes["unlabelled"] = history.history
    if "more epochs" in row.recipe:
        elastic = [ElasticReduction(ALL_REDUCTION_FACTORS)]
        fit(
            arguments.more_epochs,
            arguments.second_learning_rate,
            elastic * ("elastic" in row.recipe),
        )
    return model, notes


def first_stage(seed, task, arguments):
    """The weights of the dense parallel adapters once fine-tuned.

    They are kept in a file, for other processes and a continued benchmark.
    """
    path = arguments.output / "first_stages" / f"{task.name}-{seed}.npz"
    if not path.exists():
        model = keras_coda.coda_wrap(task.make_dense(), reduction_factor=1)
        fine_tune(
            model,
            task,
            arguments,
            seed,
            arguments.epochs,
            arguments.learning_rate,
        )
        weights = trained_weights(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(
            unfinished,
            **{
                path: keras.ops.convert_to_numpy(weight)
                for path, weight in weights.items()
            },
        )
        unfinished.replace(path)
    return np.load(path)


def fine_tune(
    model, task, arguments, seed, epochs, learning_rate, callbacks=()
):
    quality_tasks.compile_and_fit(
        model,
        *task.train,
        epochs,
        arguments.batch_size,
        learning_rate,
        seed,
        callbacks,
    )


def make_model(experiment, task):
    """The model of a row, with the task's head and nothing else trained."""
    row = ROWS[experiment.row]
    model = task.make_dense()
    if row.settings is None:
        model.backbone.trainable = "freeze" not in row.recipe
        if "lora" in row.recipe:
            model.backbone.enable_lora(8)
        return model
    model = keras_coda.coda_wrap(
        model, reduction_factor=experiment.reduction_factor, **row.settings
    )
    if "last block CLS" in row.recipe:
        # The head reads nothing else of the last block. What that saves goes to
        # the others, so that all together route as many tokens as at r.
        num_others = len(model.backbone.conditional_blocks) - 1
        others = experiment.reduction_factor * num_others / (num_others + 1)
        model.reduction_factor = [others] * num_others + [10000]
    return model


def run(experiment, task, arguments):
    """The results of one training by key, one for each reduction factor."""
    start = time.monotonic()
    model, notes = train(experiment, task, arguments)
    notes["seconds"] = time.monotonic() - start
    notes["trainable"] = sum(
        int(np.prod(weight.shape)) for weight in model.trainable_weights
    )
    if "every r" not in ROWS[experiment.row].recipe:
        return {
            experiment.key: {
                "accuracy": quality_tasks.accuracy(model, task),
                **notes,
            }
        }
    results = {}
    for reduction_factor in ALL_REDUCTION_FACTORS:
        model.reduction_factor = reduction_factor
        key = experiment._replace(reduction_factor=float(reduction_factor)).key
        results[key] = {
            "accuracy": quality_tasks.accuracy(model, task),
            **notes,
        }
    return results


def measure_speedup(experiment, task, num_rounds, batch_size=32):
    """Speed of `predict` relative to the dense parallel adapters."""
    dense = Experiment(experiment.task, "dense", 1.0, 0)
    batch = keras.tree.map_structure(lambda v: v[:batch_size], task.test[0])
    models = [make_model(item, task) for item in (dense, experiment)]
    seconds = timing.interleave(
        {
            index: functools.partial(model.predict_on_batch, batch)
            for index, model in enumerate(models)
        },
        num_rounds,
    )
    return seconds[0] / seconds[1]


# === Results ===


def summarize(results):
    """One record for each task, reduction factor and row, in order."""
    groups = {}
    for key, result in results.runs.items():
        task, row, reduction_factor, _ = key.split("/")
        group = (task, float(reduction_factor), row)
        groups.setdefault(group, []).append(result)
    tasks, rows = list(quality_tasks.TASKS), list(ROWS)
    records = []
    for (task, reduction_factor, row), runs in sorted(
        groups.items(),
        key=lambda item: (
            tasks.index(item[0][0]),
            item[0][1],
            rows.index(item[0][2]),
        ),
    ):
        accuracies = [100 * run["accuracy"] for run in runs]
        records.append(
            {
                "task": task,
                "r": reduction_factor,
                "row": ROWS[row].text,
                "accuracy": statistics.mean(accuracies),
                "spread": max(accuracies) - min(accuracies),
                "seeds": len(runs),
                "trainable": runs[0]["trainable"],
                "speedup": results.speedups.get(
                    f"{task}/{row}/{reduction_factor}"
                ),
            }
        )
    return records


def plot(records, path):
    """Accuracy against speedup, a panel for each task."""
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(record["task"] for record in records))
    figure = Figure(figsize=(6 * len(tasks), 7), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    names = list(dict.fromkeys(record["row"] for record in records))
    lines = {}
    for panel, task in zip(panels, tasks):
        for index, name in enumerate(names):
            points = [
                record
                for record in records
                if record["task"] == task
                and record["row"] == name
                and record["speedup"] is not None
            ]
            (lines[name],) = panel.plot(
                [point["speedup"] for point in points],
                [point["accuracy"] for point in points],
                marker="osD^vP*X<>"[index // 10 % 10],
                color=f"C{index % 10}",
            )
        panel.set_title(task)
        panel.set_xlabel("speed of predict, dense adapters = 1")
        panel.set_ylabel("test accuracy, %")
    figure.legend(
        lines.values(),
        lines,
        loc="outside lower center",
        ncols=2 * len(tasks),
        fontsize="small",
    )
    figure.savefig(path, dpi=80)


def main():
    arguments = parse_arguments()
    path = arguments.output / "quality.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    asked = [float(r) for r in arguments.reduction_factors.split(",")]
    experiments = [
        Experiment(task, row, reduction_factor, int(seed))
        for seed in arguments.seeds.split(",")
        for task in arguments.tasks.split(",")
        for row in arguments.rows.split(",")
        for reduction_factor in ROWS[row].reduction_factors(asked)
    ]
    make_task = functools.cache(
        lambda name: quality_tasks.TASKS[name](
            name,
            train_size=arguments.train_size,
            test_size=arguments.test_size,
            unlabelled_size=arguments.train_size * arguments.epochs,
            sequence_length=arguments.sequence_length,
            vision_epochs=arguments.vision_epochs,
        )
    )
    with rich.progress.Progress() as progress:
        bar = progress.add_task("", total=len(experiments))
        for experiment in experiments:
            progress.update(bar, description=experiment.key)
            results.read()
            if not is_done(experiment, results.runs):
                timing.clear_session(arguments.dtype)
                runs = run(experiment, make_task(experiment.task), arguments)
                results.add(runs=runs)
                for key, result in runs.items():
                    progress.console.print(
                        f"{key}: {result['accuracy']:.1%}, "
                        f"{result['seconds']:.0f} s"
                    )
            progress.advance(bar)
        if not arguments.no_speed:
            measure_missing_speedups(
                results, make_task, arguments.num_rounds, progress
            )
    records = summarize(results)
    table = timing.markdown_table(records)
    timing.write(path.with_suffix(".md"), table)
    plot(records, path.with_suffix(".png"))
    print(table)


def is_done(experiment, runs):
    if "every r" in ROWS[experiment.row].recipe:
        experiment = experiment._replace(reduction_factor=1.0)
    return experiment.key in runs


def measure_missing_speedups(results, make_task, num_rounds, progress):
    missing = sorted(
        {key.rpartition("/")[0] for key in results.runs} - set(results.speedups)
    )
    measured = {
        architecture(parse_speedup_key(key)): speedup
        for key, speedup in results.speedups.items()
    }
    for key in progress.track(missing, description="speed"):
        experiment = parse_speedup_key(key)
        model = architecture(experiment)
        if model not in measured:
            timing.clear_session("float32")
            measured[model] = measure_speedup(
                experiment, make_task(experiment.task), num_rounds
            )
        results.add(speedups={key: measured[model]})


def parse_speedup_key(key):
    task, row, reduction_factor = key.split("/")
    return Experiment(task, row, float(reduction_factor), seed=0)


def architecture(experiment):
    """What the speed of an experiment's model depends on."""
    row = ROWS[experiment.row]
    return (
        quality_tasks.TASKS[experiment.task],
        experiment.reduction_factor,
        json.dumps(row.settings),
        "lora" in row.recipe,
        "last block CLS" in row.recipe,
    )


if __name__ == "__main__":
    main()
