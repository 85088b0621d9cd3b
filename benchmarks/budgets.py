"""Accuracy at equal measured speed, of CoDA and of simpler ways to be fast.

    KERAS_BACKEND=torch python benchmarks/budgets.py
    KERAS_BACKEND=torch python benchmarks/budgets.py --tasks spans --seeds 0

Fine-tunes all-MiniLM-L6-v2 on the text tasks of budget_tasks.py. CoDA is
fine-tuned as dense adapters, which are the row `dense` of the same seed, and is
then calibrated for each of `--speedups`, and aligned without labels on texts of
the training split. The row `coda_labels` may go on with labels, and chooses
between all of these by the validation part. What CoDA is compared with is
fine-tuned for its speed from the start: dense adapters on shortened inputs, or
on the first layers alone with their pooler, or all weights of the first layers.
The row `accelerated` is what `keras_coda.training.accelerate` makes of the row
`whole`, all weights of all layers. All start from a head trained on the frozen
features.

Tasks, sizes and settings were chosen before there were any results. What is
chosen by results, the learning rate of the first layers, is chosen on the
validation part with seed 0. The test part is for finished runs.

Training and accuracy are in mixed bfloat16 (`--dtype`), speed is measured in
float32. Writes budgets.json, budgets.md and budgets.png. Each finished run is
written at once: a killed benchmark goes on where it stopped, and several may
share a folder. Seeds come last to be done with, so that what is stopped early
has whole seeds. Speed is measured last: keep the machine idle then.
"""

import argparse
import contextlib
import functools
import math
import pathlib
import statistics
from typing import NamedTuple

import bookkeeping
import budget_tasks
import keras
import keras_hub
import quality_tasks
import rich.progress
import timing

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.training.calibrate import Calibrator
from keras_coda.training.inputs import make_batches


class Row(NamedTuple):
    """One way to fine-tune.

    Attributes:
        text: what the table calls it.
        family: rows that are one line in the figure.
        num_layers: of the first layers alone, or `None` for all.
        divisor: inputs are cut to n / divisor.
        is_whole: whether all weights are trained, in the place of adapters.
    """

    text: str
    family: str
    num_layers: int | None = None
    divisor: int = 1
    is_whole: bool = False


ROWS = {
    "dense": Row("parallel adapters, dense", "dense"),
    "coda": Row("CoDA, calibrated", "coda"),
    "coda_aligned": Row("CoDA, calibrated and aligned", "coda_aligned"),
    "coda_labels": Row("CoDA, chosen by labels", "coda_labels"),
    "truncated2": Row("first n / 2 tokens", "truncated", divisor=2),
    "truncated3": Row("first n / 3 tokens", "truncated", divisor=3),
    "first4": Row("first 4 of 6 layers", "first layers", num_layers=4),
    "first3": Row("first 3 of 6 layers", "first layers", num_layers=3),
    "first2": Row("first 2 of 6 layers", "first layers", num_layers=2),
    "whole": Row("all layers, all weights", "whole", is_whole=True),
    "accelerated": Row("accelerate of all weights", "accelerated"),
    "whole4": Row("first 4, all weights", "whole", 4, is_whole=True),
    "whole3": Row("first 3, all weights", "whole", 3, is_whole=True),
    "whole2": Row("first 2, all weights", "whole", 2, is_whole=True),
    "lora": Row("KerasHub LoRA, rank 8, dense", "lora"),
}
SECOND_STAGES = ("coda_aligned", "coda_labels")
ROUTED = ("coda", *SECOND_STAGES, "accelerated")


class Experiment(NamedTuple):
    """A run.

    Attributes:
        speedup: what CoDA is asked for; 1 of other rows.
    """

    task: str
    row: str
    speedup: float
    seed: int

    @property
    def key(self):
        return "/".join(map(str, self))

    @classmethod
    def parse(cls, key):
        task, row, speedup, seed = key.split("/")
        return cls(task, row, float(speedup), int(seed))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tasks", default=",".join(budget_tasks.TASKS), help="default: all")
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--speedups", default="1.5,2,2.5,3.5", help="default: %(default)s")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--train-size", type=int, default=1000)
    add("--validation-size", type=int, default=300)
    add("--test-size", type=int, default=600)
    add("--unlabelled-size", type=int, default=256, help="for calibration")
    add("--alignment-size", type=int, default=4000, help="without labels")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=3e-3)
    add("--layers-learning-rates", default="1e-3,3e-3", help="of first layers")
    add("--whole-learning-rates", default="5e-5,2e-4", help="of all weights")
    add("--second-epochs", type=int, default=3, help="of alignment, of labels")
    add("--second-learning-rate", type=float, default=1e-3, help="of these")
    add("--cost", default="seconds", help="what CoDA's speedup is of")
    add("--dtype", default="mixed_bfloat16", help="default: %(default)s")
    add("--num-rounds", type=int, default=7, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        tasks="spans",
        rows="dense,coda_aligned,accelerated,truncated2,first2",
        speedups="2",
        seeds="0",
        train_size=16,
        validation_size=8,
        test_size=8,
        unlabelled_size=8,
        alignment_size=16,
        epochs=1,
        second_epochs=1,
        layers_learning_rates="1e-3",
        whole_learning_rates="1e-4",
        cost="flops",
        num_rounds=1,
        # bfloat16 is slow where the processor has none.
        dtype="float32",
    )


# === Training ===


class Runner:
    """Does the runs of one task.

    Args:
        task: a `BudgetTask`.
        arguments: of the command line.
        folder: where trained weights are kept, for other processes and a
            continued benchmark.
    """

    def __init__(self, task, arguments, folder):
        self.task, self.arguments, self.folder = task, arguments, folder

    def run(self, experiment):
        """The accuracy of a run, and notes about it."""
        row = ROWS[experiment.row]
        model, notes = self.train(experiment)
        length = self.length(row)
        for part in ("validation", "test"):
            notes[part] = self.task.accuracy(
                model, getattr(self.task, part), length
            )
        return notes

    def train(self, experiment):
        row, seed = experiment.row, experiment.seed
        if row == "accelerated":
            return self.accelerated(experiment)
        if row in ROUTED:
            model, notes = self.calibrated(experiment)
            if row != "coda":
                notes |= bookkeeping.timed(
                    lambda: self.train_best(model, notes, experiment)
                )
            return model, notes
        if ROWS[row].num_layers is None and not ROWS[row].is_whole:
            return self.fine_tuned(row, self.arguments.learning_rate, seed)
        return self.at_best_rate(ROWS[row])(row, seed)

    def length(self, row):
        return self.task.sequence_length // row.divisor

    def fine_tuned(self, name, learning_rate, seed):
        """A model that computes all tokens, and notes."""
        model = self.make_model(name, seed)

        def train():
            part = self.task.cut(self.task.train, self.length(ROWS[name]))
            self.fit(model, part, self.arguments.epochs, learning_rate, seed)
            return {"learning_rate": learning_rate}

        if name == "lora":
            return model, bookkeeping.timed(train)
        path = self.path(name, learning_rate, seed)
        return model, bookkeeping.keep(path, kept_weights(model, name), train)

    def path(self, *parts):
        name = "-".join(map(str, (self.task.name, *parts)))
        return self.folder / f"{name}.npz"

    def at_best_rate(self, row):
        """Of the rates for a row, that which validation with seed 0 likes."""
        arguments = self.arguments
        rates = arguments.layers_learning_rates
        if row.is_whole:
            rates = arguments.whole_learning_rates
        return bookkeeping.AtBestRate(
            self.fine_tuned,
            rates,
            lambda _, model: self.task.accuracy(
                model, self.task.validation, self.length(row)
            ),
        )

    def accelerated(self, experiment):
        """The row `whole` of the same seed, made fast without labels."""
        arguments = self.arguments
        whole, _ = self.train(experiment._replace(row="whole", speedup=1.0))
        # In the precision in which speed is measured.
        with dtype_policy("float32"):
            model = self.task.make_dense()
            model.set_weights(whole.get_weights())
            accelerate = functools.partial(
                keras_coda.training.accelerate,
                model,
                self.task.alignment,
                experiment.speedup,
                epochs=arguments.second_epochs,
                learning_rate=arguments.second_learning_rate,
                batch_size=arguments.batch_size,
                seed=experiment.seed,
                are_logits=True,
                cost=arguments.cost,
                verbose=0,
            )
            with without_flash_attention():
                notes = bookkeeping.timed(lambda: {"found": accelerate()})
        fast, calibration = notes.pop("found")
        return fast, notes | notes_of(calibration)

    def calibrated(self, experiment):
        """The dense row's model, made fast without labels, and notes."""
        rate, seed = self.arguments.learning_rate, experiment.seed
        dense_path = self.path("dense", rate, seed)
        model = self.make_model("coda", seed)

        def calibrate():
            if not dense_path.exists():
                self.fine_tuned("dense", rate, seed)
            # In the precision in which speed is measured.
            with dtype_policy("float32"):
                timed_model = build(self.task, "coda")
            bookkeeping.load(trained_weights(timed_model), dense_path)
            calibrator = Calibrator(
                timed_model,
                self.unlabelled(timed_model),
                are_logits=True,
                verbose=0,
                cost=self.arguments.cost,
            )
            fitted = calibrator.run(experiment.speedup)
            copy_weights(timed_model, model)
            return {
                "alternatives": calibrator.alternatives,
                **notes_of(fitted),
            }

        path = self.path("coda", experiment.speedup, seed)
        notes = bookkeeping.keep(path, trained_weights(model), calibrate)
        keras_coda.set_reduction_factor(model, notes["reduction_factor"])
        return model, notes

    def train_best(self, model, notes, experiment):
        """Leaves a calibrated model as it is after the best training.

        As `keras_coda.training.accelerate` does: it trains alternatives too,
        and chooses by the error that is left or, with labels, by accuracy.

        Returns:
            The reduction factors.
        """
        weights = trained_weights(model)
        best_score, best_values, best_factors = -math.inf, None, None
        for factors, score in self.trained(model, notes, experiment):
            if score > best_score:
                best_score, best_factors = score, factors
                best_values = list(
                    map(keras.ops.convert_to_numpy, weights.values())
                )
        for weight, value in zip(weights.values(), best_values):
            weight.assign(value)
        keras_coda.set_reduction_factor(model, best_factors)
        return {"reduction_factor": best_factors}

    def trained(self, model, notes, experiment):
        """Trains a model in one way after the other.

        Yields:
            Tuples of reduction factors and a score, of the model as it is then.
        """
        arguments, seed = self.arguments, experiment.seed
        has_labels = experiment.row == "coda_labels"

        def score(error):
            if not has_labels:
                return -error
            part, length = self.task.validation, self.task.sequence_length
            return self.task.accuracy(model, part, length)

        yield notes["reduction_factor"], score(notes["error"])
        candidates = [notes["reduction_factor"], *notes["alternatives"]]
        for number, factors in enumerate(candidates):
            path = self.path("aligned", experiment.speedup, seed, number)
            align = functools.partial(self.align, model, factors, seed, number)
            error = bookkeeping.keep(path, trained_weights(model), align)[
                "error"
            ]
            keras_coda.set_reduction_factor(model, factors)
            yield factors, score(error)
            if has_labels:
                epochs, rate = (
                    arguments.second_epochs,
                    arguments.second_learning_rate,
                )
                self.fit(model, self.task.train, epochs, rate, seed)
                yield factors, score(None)

    def align(self, model, factors, seed, number):
        """Trains a model without labels at what was calibrated.

        Args:
            number: of the candidate. The first is calibrated already.
        """
        rate = self.arguments.learning_rate
        if number > 0:
            bookkeeping.load(
                trained_weights(model), self.path("dense", rate, seed)
            )
        calibrator = Calibrator(
            model, self.unlabelled(model), are_logits=True, verbose=0
        )
        if number > 0:
            calibrator.run_at(factors)
        arguments, inputs = self.arguments, self.task.alignment
        rate, epochs = arguments.second_learning_rate, arguments.second_epochs
        with without_flash_attention():
            keras_coda.training.align(
                model,
                self.task.make_dense(),
                inputs,
                target="fine_tuned",
                logits_weight=1.0,
                temperature=2.0,
                optimizer=quality_tasks.make_optimizer(
                    rate, len(inputs["token_ids"]), epochs, arguments.batch_size
                ),
                epochs=epochs,
                batch_size=arguments.batch_size,
                verbose=0,
            )
        return {"error": float(calibrator.error())}

    def unlabelled(self, model):
        size = self.arguments.batch_size
        return make_batches(model, self.task.unlabelled, size)

    def fit(self, model, part, epochs, learning_rate, seed):
        """Trains on labels."""
        with without_flash_attention():
            quality_tasks.compile_and_fit(
                model,
                part.inputs,
                part.labels,
                epochs,
                self.arguments.batch_size,
                learning_rate,
                seed,
                weights=part.weights,
            )

    def make_model(self, name, seed):
        """The model of a row, with the task's head and nothing else trained."""
        row = ROWS[name]
        head = self.task.head(row.num_layers, self.length(row))
        keras.utils.set_random_seed(seed)
        return build(self.task, name, head)


def build(task, name, head=None):
    """A row's architecture."""
    model = task.make_dense(ROWS[name].num_layers, head)
    if name == "lora":
        model.backbone.enable_lora(8)
        return model
    if ROWS[name].is_whole:
        return model
    settings = {"shortcut_dim": 64} if name in ROUTED else {}
    converted = keras_coda.coda_wrap(model, reduction_factor=1, **settings)
    for layer in poolers(converted, name):
        layer.trainable = True
    return converted


def poolers(model, name):
    """What is trained besides: the first layers need a pooler of their own."""
    is_pooled = isinstance(model, keras_hub.models.Task)
    has_all = ROWS[name].num_layers is None
    return [model.backbone.pooled_dense] if is_pooled and not has_all else []


def notes_of(calibration):
    """What is written of a `Calibration`."""
    return {
        "reduction_factor": list(map(float, calibration.reduction_factor)),
        "speedup": float(calibration.speedup),
        "error": float(calibration.error),
    }


def kept_weights(model, name):
    """What is trained, by name."""
    if ROWS[name].is_whole:
        return bookkeeping.all_weights(model)
    return trained_weights(model) | {
        f"pooler/{weight.name}": weight
        for layer in poolers(model, name)
        for weight in layer.weights
    }


@contextlib.contextmanager
def without_flash_attention():
    """PyTorch's, whose gradient on a CPU takes half of a training step."""
    if keras.backend.backend() != "torch":
        yield
        return
    import torch

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        yield


@contextlib.contextmanager
def dtype_policy(name):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def copy_weights(source, target):
    """Copies what is trained to a model in another precision."""
    values = trained_weights(source).values()
    for weight, value in zip(trained_weights(target).values(), values):
        weight.assign(keras.ops.convert_to_numpy(value))


# === Speed ===


def speed_key(key, run):
    """What the speed of a run depends on."""
    experiment = Experiment.parse(key)
    row = "coda" if experiment.row in ROUTED else experiment.row
    factors = run.get("reduction_factor", [1])
    return f"{experiment.task}/{row}/{','.join(map(str, factors))}"


def measure_speedups(keys, task, num_rounds):
    """Speeds of `predict`, relative to the dense parallel adapters.

    Args:
        keys: those of `speed_key` of a task.

    Yields:
        Tuples of key and speed.
    """
    dense = predictor(build(task, "dense"), task, task.sequence_length)
    for key in keys:
        _, name, factors = key.split("/")
        if name == "dense":
            yield key, 1.0
            continue
        model = build(task, name)
        if name in ROUTED:
            factors = list(map(float, factors.split(",")))
            keras_coda.set_reduction_factor(model, factors)
        length = task.sequence_length // ROWS[name].divisor
        seconds = timing.interleave(
            {"dense": dense, "row": predictor(model, task, length)}, num_rounds
        )
        yield key, seconds["dense"] / seconds["row"]


def predictor(model, task, length, batch_size=32):
    inputs = task.cut(task.test, length).inputs
    batch = {name: values[:batch_size] for name, values in inputs.items()}
    return functools.partial(model.predict_on_batch, batch)


def measure_missing_speedups(results, make_task, arguments, progress):
    keys = {speed_key(key, run) for key, run in results.runs.items()}
    missing = {}
    for key in sorted(keys - set(results.speedups)):
        missing.setdefault(key.split("/")[0], []).append(key)
    for name, keys in progress.track(missing.items(), description="speed"):
        timing.clear_session("float32")
        for key, speedup in measure_speedups(
            keys, make_task(name), arguments.num_rounds
        ):
            results.add(speedups={key: speedup})


# === Results ===


def summarize(results):
    """One record for each task, row and asked speedup, in order."""
    groups = {}
    for key, run in results.runs.items():
        experiment = Experiment.parse(key)
        groups.setdefault(experiment[:3], {})[experiment.seed] = run
    tasks, rows = list(budget_tasks.TASKS), list(ROWS)
    records = []
    for (task, row, asked), runs in sorted(
        groups.items(),
        key=lambda item: (
            tasks.index(item[0][0]),
            rows.index(item[0][1]),
            item[0][2],
        ),
    ):
        dense = groups.get((task, "dense", 1.0), {})
        lost = [
            100 * (dense[seed]["test"] - run["test"])
            for seed, run in runs.items()
            if seed in dense and row != "dense"
        ]
        speedups = [
            results.speedups.get(
                speed_key(Experiment(task, row, asked, seed).key, run)
            )
            for seed, run in runs.items()
        ]
        test, error = bookkeeping.mean_and_error(
            [100 * run["test"] for run in runs.values()]
        )
        lost, lost_error = bookkeeping.mean_and_error(lost)
        records.append(
            {
                "task": task,
                "row": ROWS[row].text,
                "asked": asked if row in ROUTED else None,
                "speedup": (
                    None if None in speedups else statistics.mean(speedups)
                ),
                "validation": statistics.mean(
                    100 * run["validation"] for run in runs.values()
                ),
                "test": test,
                "error": error,
                "lost": lost,
                "error of lost": lost_error,
                "seeds": len(runs),
            }
        )
    return records


def plot(records, path):
    """Accuracy against speed, a panel for each task."""
    from matplotlib.figure import Figure

    families = {row.text: row.family for row in ROWS.values()}
    styles = {
        family: {"color": f"C{index}", "marker": "osD^vPXd<"[index % 9]}
        for index, family in enumerate(dict.fromkeys(families.values()))
    }
    tasks = list(dict.fromkeys(record["task"] for record in records))
    num_columns = min(4, len(tasks))
    num_rows = -(-len(tasks) // num_columns)
    figure = Figure(
        figsize=(4 * num_columns, 4 * num_rows), layout="constrained"
    )
    panels = figure.subplots(num_rows, num_columns, squeeze=False).flatten()
    lines = {}
    for panel, task in zip(panels, tasks):
        for family, style in styles.items():
            points = sorted(
                (record["speedup"], record["test"], record["error"] or 0)
                for record in records
                if record["task"] == task
                and families[record["row"]] == family
                and record["speedup"] is not None
            )
            if points:
                speedups, tests, errors = zip(*points)
                lines[family] = panel.errorbar(
                    speedups, tests, errors, capsize=2, **style
                )
        panel.set_title(task)
        panel.set_xlabel("speed of predict, dense adapters = 1")
        panel.set_ylabel("test accuracy, %")
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    if lines:
        figure.legend(
            lines.values(),
            lines,
            loc="outside lower center",
            ncols=len(lines),
            fontsize="small",
        )
    figure.savefig(path, dpi=80)


def main():
    arguments = parse_arguments()
    name = "budgets-quick" if arguments.quick else "budgets"
    path = arguments.output / f"{name}.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    asked = list(map(float, arguments.speedups.split(",")))
    experiments = [
        Experiment(task, row, speedup, int(seed))
        for seed in arguments.seeds.split(",")
        for task in arguments.tasks.split(",")
        for row in arguments.rows.split(",")
        for speedup in (asked if row in ROUTED else [1.0])
    ]
    make_task = functools.cache(
        lambda name: budget_tasks.BudgetTask(
            name,
            train_size=arguments.train_size,
            validation_size=arguments.validation_size,
            test_size=arguments.test_size,
            unlabelled_size=arguments.unlabelled_size,
            alignment_size=arguments.alignment_size,
        )
    )
    folder = arguments.output / "first_stages" / name
    with rich.progress.Progress() as progress:
        bar = progress.add_task("", total=len(experiments))
        for experiment in experiments:
            progress.update(bar, description=experiment.key)
            results.read()
            if experiment.key not in results.runs:
                timing.clear_session(arguments.dtype)
                task = make_task(experiment.task)
                run = Runner(task, arguments, folder).run(experiment)
                results.add(runs={experiment.key: run})
                progress.console.print(
                    f"{experiment.key}: {run['test']:.1%}, "
                    f"{run['seconds']:.0f} s"
                )
            progress.advance(bar)
        if not arguments.no_speed:
            measure_missing_speedups(results, make_task, arguments, progress)
    records = summarize(results)
    table = timing.markdown_table(records)
    timing.write(path.with_suffix(".md"), table)
    plot(records, path.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
