"""What a speech encoder with CTC spells, whose frames are routed.

    KERAS_BACKEND=jax python benchmarks/speech_ctc.py
    KERAS_BACKEND=torch python benchmarks/speech_ctc.py --pretrain-epochs 3 \\
        --base-epochs 15 --learning-rates 3e-3

The first is for a GPU; the second, of fewer epochs, takes an hour on one core.

No pretrained speech encoder is at hand, so a small plain Transformer over
frames of 40 log-mels is trained first, kept in `first_stages` of the output
folder: by BEST-RQ on all of the training speech, without its texts, and then by
CTC on the characters that American voices of a synthesiser say. That is frozen.
The task is other voices, of almost 1,000 utterances; of them adapters,
normalisations and the head learn by CTC for `--epochs` epochs. See
ctc_speech.py for the speech.

- The paper's recipe: routers by coordinate descent with epsilon 1.0, trained at
  r, with and without BEST-RQ at r before, on all of the training speech.
- Ours: dense adapters, calibrated at r or for a speedup on `--unlabelled-size`
  utterances, and aligned to the dense adapters on all, without texts.
- The controls are dense adapters for the first layers alone, and for half the
  frame rate: neighbouring tokens are averaged, and the head writes two
  characters for each.

The learning rate is the best on the validation part with seed 0. Speed is that
of the whole model on `--timed-batch` utterances, over dense adapters. Seeds are
of what follows the first stage. Writes speech_ctc.json and .md; finished runs
are written at once.
"""

import argparse
import functools
import pathlib
from itertools import starmap
from typing import NamedTuple

import bookkeeping
import ctc_speech
import keras
import numpy as np
import quality_tasks
import timing

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.training.inputs import ShuffledBatches
from keras_coda.training.masked_frames import MaskedFramesObjective

SIZES = {"known": 1700, "train": 1000, "validation": 160, "test": 320}
ADAPTER_DIM = SHORTCUT_DIM = 32
PAPER = {"router": "coordinate_descent", "epsilon": 1.0}


class Row(NamedTuple):
    """One way to spell.

    Attributes:
        text: what the table calls it.
        factor: optional reduction factor of all blocks.
        speedup: optional, what CoDA is asked for.
        recipe: `"frozen"`, `"trained"`, `"pretrained"` and trained,
            `"calibrated"`, or `"aligned"` after that.
        num_dropped: of the last layers.
        pooling: how many neighbouring tokens are one.
    """

    text: str
    factor: float | None = None
    speedup: float | None = None
    recipe: str = "trained"
    num_dropped: int = 0
    pooling: int = 1

    @property
    def is_calibrated(self):
        return self.recipe in ("calibrated", "aligned")

    @property
    def settings(self):
        """Of `coda_wrap`."""
        if self.is_calibrated:
            return {"shortcut_dim": SHORTCUT_DIM}
        return PAPER if self.factor else {}


ROWS = {
    "frozen": Row("not adapted to the voices", recipe="frozen"),
    "dense": Row("dense adapters"),
}
for factor in (2, 4):
    ROWS |= {
        f"r{factor}": Row(f"r = {factor}, the paper's", factor),
        f"r{factor}_pretrained": Row(
            f"r = {factor}, the paper's, pretrained at r",
            factor,
            recipe="pretrained",
        ),
        f"r{factor}_calibrated": Row(
            f"r = {factor}, calibrated", factor, recipe="calibrated"
        ),
        f"r{factor}_aligned": Row(
            f"r = {factor}, calibrated, aligned", factor, recipe="aligned"
        ),
    }
ROWS |= {
    "speedup_calibrated": Row(
        "speedup of 1.5, calibrated", speedup=1.5, recipe="calibrated"
    ),
    "speedup_aligned": Row(
        "speedup of 1.5, calibrated, aligned", speedup=1.5, recipe="aligned"
    ),
    "dropped1": Row("last layer dropped", num_dropped=1),
    "dropped2": Row("last two layers dropped", num_dropped=2),
    "half_rate": Row("half the frame rate", pooling=2),
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--seeds", default="0", help="default: %(default)s")
    add("--num-layers", type=int, default=4)
    add("--hidden-dim", type=int, default=144)
    add("--pretrain-epochs", type=int, default=10, help="of BEST-RQ")
    add("--base-epochs", type=int, default=30, help="of American voices")
    add("--epochs", type=int, default=15, help="of the other voices")
    add("--batch-size", type=int, default=32)
    add("--base-learning-rate", type=float, default=1e-3)
    add("--learning-rates", default="1e-3,3e-3", help="default: %(default)s")
    add("--align-learning-rate", type=float, default=1e-3)
    add("--unlabelled-size", type=int, default=256, help="for calibration")
    add("--max-size", type=int, default=10_000, help="utterances of a part")
    add("--timed-batch", type=int, default=32)
    add("--num-rounds", type=int, default=7, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add("--speech", type=pathlib.Path, help="a file that was made before")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        rows="frozen,dense,r4_pretrained,speedup_aligned,half_rate",
        num_layers=2,
        hidden_dim=16,
        pretrain_epochs=1,
        base_epochs=1,
        epochs=1,
        batch_size=2,
        learning_rates="1e-3",
        unlabelled_size=4,
        max_size=4,
        timed_batch=1,
        num_rounds=1,
    )


def read_speech(arguments):
    """A dict from part to `Speech`."""
    path = arguments.speech or (
        arguments.output / "first_stages" / f"{name_of(arguments)}_speech.npz"
    )
    sizes = {
        part: min(size, arguments.max_size) for part, size in SIZES.items()
    }
    if not path.exists():
        ctc_speech.make_file(path, sizes)
    return {
        part: ctc_speech.Speech(path, part, size)
        for part, size in sizes.items()
    }


def name_of(arguments):
    return "speech_ctc-quick" if arguments.quick else "speech_ctc"


def make_optimizer(learning_rate, num_examples, epochs, batch_size):
    schedule = quality_tasks.make_schedule(
        learning_rate, num_examples, epochs, batch_size
    )
    return keras.optimizers.AdamW(schedule, global_clipnorm=1.0)


# === Rows ===


class Runner:
    """Does the runs.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        self.folder = arguments.output / "first_stages" / name_of(arguments)
        self.speech = read_speech(arguments)
        self.base = self.train_base()
        self.trained = bookkeeping.AtBestRate(
            self.trained_at,
            arguments.learning_rates,
            lambda name, model: (
                -self.error_rates(
                    model, "validation", pooling=ROWS[name].pooling
                )["characters"]
            ),
        )

    def inputs(self, part, size=None):
        return ctc_speech.pad(self.speech[part].features[:size])

    def training_features(self):
        """All speech that may be trained on, without texts."""
        return self.speech["known"].features + self.speech["train"].features

    # --- The first stage ---

    def make_base(self, num_dropped=0, pooling=1):
        arguments = self.arguments
        backbone = ctc_speech.SpeechBackbone(
            num_layers=arguments.num_layers - num_dropped,
            hidden_dim=arguments.hidden_dim,
            pooling=pooling,
        )
        return ctc_speech.make_speller(backbone)

    def train_base(self):
        """A dense model of the American voices."""
        keras.utils.set_random_seed(0)
        base = self.make_base()
        weights = bookkeeping.all_weights(base)

        def train():
            pretraining = self.pretrain_base(base)
            history = self.fit(
                base,
                "known",
                self.arguments.base_learning_rate,
                self.arguments.base_epochs,
            )
            return {
                "pretraining": pretraining,
                "loss": history.history["loss"],
                "known": self.error_rates(base, "known", size=200),
            }

        notes = bookkeeping.keep(self.folder / "base.npz", weights, train)
        print("first stage, of voices that it knows:", notes["known"])
        return base

    def pretrain_base(self, base):
        arguments, features = self.arguments, self.training_features()
        objective = MaskedFramesObjective(
            base.get_layer("speech_backbone"),
            task_cls=None,
            tokenizer=None,
            sequence_length=ctc_speech.MAX_FRAMES,
            mask_rate=None,
            rng=np.random.default_rng(0),
        )
        objective.model.compile(
            optimizer=make_optimizer(
                arguments.base_learning_rate,
                len(features),
                arguments.pretrain_epochs,
                arguments.batch_size,
            ),
            loss=objective.loss,
            weighted_metrics=objective.metrics,
        )
        batches = ShuffledBatches(
            features, objective.make_batch, arguments.batch_size, seed=0
        )
        history = objective.model.fit(
            batches, epochs=arguments.pretrain_epochs, verbose=2
        )
        return history.history

    def part_of_base(self, row):
        """The first layers, or a base of fewer tokens, with its weights."""
        if not row.num_dropped and row.pooling == 1:
            return self.base
        model = self.make_base(row.num_dropped, row.pooling)
        source = self.base.get_layer("speech_backbone")
        for layer in model.get_layer("speech_backbone").layers:
            if layer.weights:
                layer.set_weights(source.get_layer(layer.name).get_weights())
        kernel, bias = self.base.get_layer("head").get_weights()
        model.get_layer("head").set_weights(
            [np.tile(kernel, row.pooling), np.tile(bias, row.pooling)]
        )
        return model

    # --- What follows ---

    def run(self, name, seed):
        keras.utils.set_random_seed(seed)
        model, notes = self.make(name, seed)
        pooling = ROWS[name].pooling
        for part in ("validation", "test"):
            notes[part] = self.error_rates(model, part, pooling=pooling)
        return notes

    def make(self, name, seed):
        row = ROWS[name]
        if row.recipe == "frozen":
            return self.base, {}
        if row.is_calibrated:
            model, notes = self.calibrated(name, seed)
            if row.recipe == "aligned":
                notes |= bookkeeping.timed(lambda: self.align(model, seed))
            return model, notes
        return self.trained(name, seed)

    def convert(self, row, **settings):
        return keras_coda.coda_wrap(
            self.part_of_base(row),
            adapter_dim=ADAPTER_DIM,
            **{"reduction_factor": row.factor or 1, **row.settings, **settings},
        )

    def trained_at(self, name, rate, seed):
        keras.utils.set_random_seed(seed)
        row, arguments = ROWS[name], self.arguments
        coda = self.convert(row)
        weights, notes = trained_weights(coda), {}
        if row.recipe == "pretrained":
            pretraining = bookkeeping.keep(
                self.folder / f"{name}-{seed}.npz",
                weights,
                lambda: self.pretrain(coda, row, seed),
            )
            notes["pretraining"] = pretraining

        def train():
            history = self.fit(
                coda, "train", rate, arguments.epochs, row.pooling
            )
            return {"learning_rate": rate, "loss": history.history["loss"]}

        path = self.folder / f"{name}-{rate:g}-{seed}.npz"
        return coda, notes | bookkeeping.keep(path, weights, train)

    def pretrain(self, coda, row, seed):
        arguments, features = self.arguments, self.training_features()
        history = keras_coda.training.pretrain(
            coda,
            features,
            sequence_length=ctc_speech.MAX_FRAMES,
            reduction_factor=row.factor,
            optimizer=make_optimizer(
                1e-3,
                len(features),
                arguments.pretrain_epochs,
                arguments.batch_size,
            ),
            batch_size=arguments.batch_size,
            epochs=arguments.pretrain_epochs,
            seed=seed,
            verbose=0,
        )
        return history.history

    def fit(self, model, part, rate, epochs, pooling=1):
        arguments = self.arguments
        labels = ctc_speech.make_labels(self.speech[part], pooling)
        model.compile(
            optimizer=make_optimizer(
                rate, len(labels), epochs, arguments.batch_size
            ),
            loss=ctc_speech.ctc_loss,
        )
        return model.fit(
            self.inputs(part),
            labels,
            batch_size=arguments.batch_size,
            epochs=epochs,
            verbose=0,
        )

    def calibrated(self, name, seed):
        row = ROWS[name]
        coda = self.convert(row, reduction_factor=1)
        # As the dense adapters are, with shortcuts beside them.
        dense, _ = self.trained("dense", seed)
        weights = trained_weights(coda)
        for path, weight in trained_weights(dense).items():
            weights[path].assign(keras.ops.convert_to_numpy(weight))

        def calibrate():
            keras_coda.set_reduction_factor(coda, row.factor or 1)
            calibration = keras_coda.training.calibrate(
                coda,
                self.inputs("train", self.arguments.unlabelled_size),
                speedup=row.speedup,
                are_logits=True,
                seed=seed,
                verbose=0,
            )
            return {"reduction_factor": calibration.reduction_factor}

        path = self.folder / f"{name.split('_')[0]}_calibrated-{seed}.npz"
        notes = bookkeeping.keep(path, weights, calibrate)
        keras_coda.set_reduction_factor(coda, notes["reduction_factor"])
        return coda, notes

    def align(self, coda, seed):
        arguments, inputs = self.arguments, self.inputs("train")
        size = len(inputs["frames"])
        keras.utils.set_random_seed(seed)
        history = keras_coda.training.align(
            coda,
            self.base,
            inputs,
            target="fine_tuned",
            logits_weight=1.0,
            optimizer=make_optimizer(
                arguments.align_learning_rate,
                size,
                arguments.epochs,
                arguments.batch_size,
            ),
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            verbose=0,
        )
        return {"hidden_error": history.history["hidden_error"]}

    def error_rates(self, model, part, size=None, pooling=1):
        """Of characters and of words."""
        speech = self.speech[part]
        logits = model.predict(
            self.inputs(part, size), batch_size=32, verbose=0
        )
        labels = ctc_speech.make_labels(speech, pooling)[:size]
        texts = ctc_speech.spell(logits, labels)
        references = speech.texts[:size]
        return {
            "characters": ctc_speech.error_rate(references, texts),
            "words": ctc_speech.error_rate(
                [text.split() for text in references],
                [text.split() for text in texts],
            ),
        }


# === Speed ===


def speed_key(key, run):
    """Names what is as fast: recipes and seeds do not matter."""
    name, _ = key.split("/")
    row = ROWS[name]
    factors = run.get("reduction_factor")
    if row.is_calibrated:
        return "calibrated " + ",".join(f"{factor:g}" for factor in factors)
    return name.removesuffix("_pretrained")


def measure_speedups(results, runner):
    """Over dense adapters, all in turn."""
    inputs = runner.inputs("test", runner.arguments.timed_batch)

    def call(model):
        return functools.partial(model.predict_on_batch, inputs)

    calls = {"dense": call(runner.convert(ROWS["dense"]))}
    for key, run in results.runs.items():
        row, name = ROWS[key.split("/")[0]], speed_key(key, run)
        if row.recipe == "frozen":
            calls[name] = call(runner.base)
        elif name not in calls:
            factors = run.get("reduction_factor", row.factor or 1)
            calls[name] = call(runner.convert(row, reduction_factor=factors))
    seconds = timing.interleave(calls, runner.arguments.num_rounds)
    results.add(
        speedups={
            key: seconds["dense"] / value for key, value in seconds.items()
        }
    )


# === Results ===


def summarize(results):
    """One record for each row, error rates in percent."""
    records = []
    for name, row in ROWS.items():
        runs = results.of(name)
        if not runs:
            continue
        record = {
            "model": row.text,
            "speedup": results.mean_speedup(starmap(speed_key, runs.items())),
        }
        for part in ("test", "validation"):
            for unit in ("characters", "words"):
                record[f"{unit}, {part}"], error = bookkeeping.mean_and_error(
                    [100 * run[part][unit] for run in runs.values()]
                )
                if (part, unit) == ("test", "characters"):
                    record["standard error"] = error
        records.append({**record, "seeds": len(runs)})
    return records


def main():
    arguments = parse_arguments()
    path = arguments.output / f"{name_of(arguments)}.json"
    setup = bookkeeping.setup(arguments)
    del setup["speech"]
    results = bookkeeping.Results(path, setup)
    runner = Runner(arguments)
    results.do(
        arguments,
        # Nothing is trained of that.
        lambda name: ROWS[name].recipe != "frozen",
        runner.run,
    )
    if not arguments.no_speed:
        measure_speedups(results, runner)
    table = timing.markdown_table(summarize(results))
    timing.write(path.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
