"""What a fine-tuned model keeps in 8 and 4 bits, dense and made fast.

    KERAS_BACKEND=torch python benchmarks/quantized.py

MiniLM with dense adapters, fine-tuned in float32 on topics or pairs of Reuters
R52 (`--task`, of quality_tasks.py). It is quantized, or made fast by
`calibrate` and quantized, in either order, or trained for an epoch more after
that. Test accuracy, and the size of the `.keras` file. Seeds are of the
fine-tuning.

Writes quantized-TASK.json and .md; finished runs are written at once.
"""

import argparse
import pathlib
import tempfile
from typing import NamedTuple

import bookkeeping
import keras
import quality_tasks
import timing

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights

TASKS = ("topics", "pairs")
SHORTCUT_DIM = 64


class Row(NamedTuple):
    """What becomes of a fine-tuned model.

    Attributes:
        text: what the table calls it.
        mode: of `quantize`, or `None`.
        speedup: optional, what `calibrate` is asked for.
        is_calibrated_last: whether that comes after `quantize`.
        is_trained: for an epoch more, in the end.
    """

    text: str
    mode: str | None = None
    speedup: float | None = None
    is_calibrated_last: bool = False
    is_trained: bool = False


ROWS = {"float32": Row("float32"), "fast": Row("speedup of 2", None, 2)}
for mode in ("int8", "int4"):
    ROWS[mode] = Row(mode, mode)
    ROWS[f"fast_{mode}"] = Row(f"speedup of 2, then {mode}", mode, 2)
    ROWS[f"{mode}_fast"] = Row(f"{mode}, then a speedup of 2", mode, 2, True)
ROWS["int4_trained"] = Row("int4, an epoch more", "int4", is_trained=True)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--task", default="topics", choices=TASKS, help="default: %(default)s")
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--train-size", type=int, default=1500)
    add("--test-size", type=int, default=1000)
    add("--calibration-size", type=int, default=384)
    add("--sequence-length", type=int, default=128)
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=3e-3)
    add("--second-learning-rate", type=float, default=1e-3, help="after it")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        rows="float32,int4_fast",
        seeds="0",
        train_size=16,
        test_size=16,
        calibration_size=16,
        sequence_length=16,
        epochs=1,
    )


class Runner:
    """Does the runs.

    Args:
        task: of quality_tasks.py.
        arguments: of the command line.
    """

    def __init__(self, task, arguments):
        self.task, self.arguments = task, arguments

    def run(self, name, seed):
        row = ROWS[name]
        model = self.fine_tuned(seed)
        if row.speedup is not None and not row.is_calibrated_last:
            self.calibrate(model, row.speedup)
        if row.mode is not None:
            model.quantize(row.mode)
        if row.is_calibrated_last:
            self.calibrate(model, row.speedup)
        if row.is_trained:
            self.fit(model, 1, self.arguments.second_learning_rate, seed)
        return {
            "test": 100 * quality_tasks.accuracy(model, self.task),
            "file, MB": file_size(model),
            "reduction_factor": model.reduction_factor,
        }

    def fine_tuned(self, seed):
        """With dense adapters, in float32."""
        arguments = self.arguments
        keras.utils.set_random_seed(seed)
        model = keras_coda.coda_wrap(
            self.task.make_dense(),
            reduction_factor=1,
            shortcut_dim=SHORTCUT_DIM,
        )

        def train():
            self.fit(model, arguments.epochs, arguments.learning_rate, seed)
            return {}

        folder = arguments.output / "first_stages"
        path = folder / f"{name_of(arguments)}-{seed}.npz"
        bookkeeping.keep(path, trained_weights(model), train)
        return model

    def fit(self, model, epochs, learning_rate, seed):
        quality_tasks.compile_and_fit(
            model,
            *self.task.train,
            epochs,
            self.arguments.batch_size,
            learning_rate,
            seed,
        )

    def calibrate(self, model, speedup):
        keras_coda.training.calibrate(
            model, self.task.unlabelled, speedup=speedup, verbose=0
        )


def file_size(model):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        return path.stat().st_size / 1e6


def name_of(arguments):
    quick = "-quick" if arguments.quick else ""
    return f"quantized{quick}-{arguments.task}"


def summarize(results):
    """One record for each row."""
    records = []
    for name, row in ROWS.items():
        runs = results.of(name).values()
        if not runs:
            continue
        test, error = bookkeeping.mean_and_error([run["test"] for run in runs])
        records.append(
            {
                "model": row.text,
                "test": test,
                "error": error,
                "file, MB": next(iter(runs))["file, MB"],
                "seeds": len(runs),
            }
        )
    return records


def main():
    arguments = parse_arguments()
    path = arguments.output / f"{name_of(arguments)}.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    task = quality_tasks.TextTask(
        arguments.task,
        train_size=arguments.train_size,
        test_size=arguments.test_size,
        unlabelled_size=arguments.calibration_size,
        sequence_length=arguments.sequence_length,
    )
    runner = Runner(task, arguments)
    results.do(arguments, lambda name: True, runner.run)
    table = timing.markdown_table(summarize(results))
    timing.write(path.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
