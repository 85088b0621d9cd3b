"""What the benchmarks of quality share: runs that are kept, and their results.

A finished run is written at once, so a killed benchmark goes on where it
stopped, and several processes may share a folder.
"""

import json
import math
import os
import statistics
import time

import keras
import numpy as np
import rich.progress
import timing

# Arguments of which the outcome of a run does not depend.
OTHER_ARGUMENTS = (
    "tasks",
    "rows",
    "reduction_factors",
    "speedups",
    "seeds",
    "no_speed",
    "evaluation_batch_size",
    "num_rounds",
    "minutes",
    "output",
    "quick",
)


def setup(arguments):
    """What the outcome of all runs depends on, as a dict."""
    return {
        name: value
        for name, value in vars(arguments).items()
        if name not in OTHER_ARGUMENTS
    }


class Results:
    """The results so far, of this process and others, in a file.

    Attributes:
        runs: dict from the key of an experiment to its accuracy and notes.
        speedups: dict from that key without its seed to the speed.
    """

    def __init__(self, path, setup):
        self.path, self.setup = path, setup
        self.read()

    def read(self):
        self.runs, self.speedups = {}, {}
        if not self.path.exists():
            return
        content = json.loads(self.path.read_text())
        if content["setup"] != self.setup:
            raise SystemExit(
                f"error: {self.path} holds runs of another setup, "
                f"{content['setup']}. Name another --output."
            )
        self.runs, self.speedups = content["runs"], content["speedups"]

    def add(self, runs={}, speedups={}):
        # Another process may have added some meanwhile.
        self.read()
        self.runs.update(runs)
        self.speedups.update(speedups)
        timing.write_json(
            self.path,
            {
                "setup": self.setup,
                "versions": timing.versions(),
                "speedups": self.speedups,
                "runs": self.runs,
            },
        )

    def do(self, arguments, has_seeds, run, stop=math.inf):
        """Runs each row with each seed, but those that were run before.

        Args:
            arguments: of the command line: `rows` and `seeds`.
            has_seeds: function of a row's name that tells whether its outcome
                depends on the seed; else it is run with the first alone.
            run: function of a row's name and a seed.
            stop: on the monotonic clock. No run starts after it.
        """
        asked = [
            (name, int(seed))
            for seed in arguments.seeds.split(",")
            for name in arguments.rows.split(",")
            if seed == "0" or has_seeds(name)
        ]
        for name, seed in rich.progress.track(asked):
            key = f"{name}/{seed}"
            self.read()
            if key not in self.runs and time.monotonic() < stop:
                self.add(runs={key: run(name, seed)})

    def of(self, row):
        """The runs of a row, by `row/seed`."""
        return {
            key: run
            for key, run in self.runs.items()
            if key.split("/")[0] == row
        }

    def mean_speedup(self, keys):
        """The mean of some speeds, if all of them were measured."""
        found = [self.speedups.get(key) for key in keys]
        return None if None in found else statistics.mean(found)


class AtBestRate:
    """Trains rows at the learning rate that is best with seed 0.

    Args:
        train: function of a row, a rate and a seed that returns a model and
            notes.
        rates: text of the command line, with commas.
        score: function of a row and a model; the larger, the better.
    """

    def __init__(self, train, rates, score):
        self.train, self.score = train, score
        self.rates = list(map(float, rates.split(",")))
        self.best = {}

    def __call__(self, row, seed):
        if len(self.rates) == 1:
            return self.train(row, self.rates[0], seed)
        if row not in self.best:
            self.best[row] = max(
                ((rate, self.train(row, rate, 0)) for rate in self.rates),
                key=lambda pair: self.score(row, pair[1][0]),
            )
        rate, found = self.best[row]
        return found if seed == 0 else self.train(row, rate, seed)


def timed(function):
    start = time.monotonic()
    return {**function(), "seconds": time.monotonic() - start}


def all_weights(model):
    """All weights of a model by number.

    Paths do not tell the position biases of a T5's encoder from those of its
    decoder, and count the layers that were made before.
    """
    return {str(number): x for number, x in enumerate(model.weights)}


def first_stage(arguments, benchmark, name):
    """The file of weights that other runs start from."""
    return arguments.output / "first_stages" / benchmark / f"{name}.npz"


def keep(path, weights, train):
    """Trains weights, or gives them the values they had when that was done.

    Returns:
        The notes that `train` returned then.
    """
    if not path.exists():
        notes = timed(train)
        values = {
            name: keras.ops.convert_to_numpy(weight)
            for name, weight in weights.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, notes=json.dumps(notes), **values)
        unfinished.replace(path)
    return load(weights, path)


def load(weights, path):
    """Gives weights the values that are kept; returns the notes.

    Others of the weights, which a model has beyond, stay as they are.
    """
    with np.load(path) as file:
        for name in file:
            if name != "notes":
                weights[name].assign(file[name])
        return json.loads(str(file["notes"]))


def mean_and_error(values):
    """The mean and its standard error, as far as there are any."""
    mean = statistics.mean(values) if values else None
    if len(values) < 2:
        return mean, None
    return mean, statistics.stdev(values) / len(values) ** 0.5
