"""What a language model answers whose prompts are routed, at equal speed.

    KERAS_BACKEND=torch python benchmarks/prompt_quality.py

No large language model is at hand, so a small one is trained first, of 2.5M
parameters and Llama's architecture, until it answers the three kinds of
questions of prompt_tasks.py, for an hour on one core that multiplies in
bfloat16. It reads short texts first, in which it learns in minutes what it does
not learn in long ones. It is kept in `first_stages` of the output folder.

- CoDA is calibrated on `--unlabelled-size` prompts, at uniform factors or for a
  speedup, and aligned to the dense model on `--train-size` others.
- The first layers alone get dense adapters that are trained on the same
  prompts with their answers, at the learning rate that is best on the
  validation part with seed 0.
- Prompts are cut to their last tokens behind the start.

An answer counts if all of its tokens are right. Speed is that of the first
token, of `--timed-batch` prompts in float32, over the dense model. Seeds are of
what follows the training of the language model. Writes prompt_quality.json, .md
and .png; finished runs are written at once.
"""

import argparse
import pathlib
import statistics
from itertools import starmap
from typing import NamedTuple

import bookkeeping
import keras
import keras_hub
import numpy as np
import prompt_tasks
import prompts
import quality_tasks
import timing

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights

NUM_LAYERS = 6
SHORT_TEXT_LENGTH = 48
SETTINGS = {"adapter_dim": 32, "shortcut_dim": 64}


class Row(NamedTuple):
    """One way to answer.

    Attributes:
        text: what the table calls it.
        family: rows that are one line in the figure.
        factor: optional reduction factor, of all blocks or of each.
        speedup: optional, what CoDA is asked for.
        is_aligned: whether what was calibrated is trained.
        num_layers: of the first layers alone.
        divisor: prompts are cut to n / divisor.
    """

    text: str
    family: str
    factor: float | tuple | None = None
    speedup: float | None = None
    is_aligned: bool = False
    num_layers: int = NUM_LAYERS
    divisor: int = 1

    @property
    def is_routed(self):
        return bool(self.factor or self.speedup)


ROWS = {"dense": Row("dense", "dense")}
for factor in (2, 4, 8):
    ROWS[f"r{factor}"] = Row(f"r = {factor}", "calibrated", factor)
    ROWS[f"r{factor}_aligned"] = Row(
        f"r = {factor}, aligned", "aligned", factor, is_aligned=True
    )
# The default; and as fast, by arithmetic, as r = 2 and r = 4. The last block is
# free anyway.
for num_dense, factor in ((2, 4), (2, 6), (1, 16)):
    text = f"first {num_dense} dense, then r = {factor}"
    factors = (1,) * num_dense + (factor,) * (NUM_LAYERS - num_dense)
    ROWS[f"late{factor}"] = Row(text, "late", factors)
    ROWS[f"late{factor}_aligned"] = Row(
        f"{text}, aligned", "late, aligned", factors, is_aligned=True
    )
for speedup in (2, 3):
    ROWS[f"speedup{speedup}"] = Row(
        f"speedup of {speedup}", "speedup", speedup=speedup
    )
    ROWS[f"speedup{speedup}_aligned"] = Row(
        f"speedup of {speedup}, aligned",
        "speedup, aligned",
        speedup=speedup,
        is_aligned=True,
    )
for divisor in (2, 4):
    ROWS[f"truncated{divisor}"] = Row(
        f"last n / {divisor} tokens", "truncated", divisor=divisor
    )
for num_layers in (5, 4, 3, 2):
    ROWS[f"first{num_layers}"] = Row(
        f"first {num_layers} of {NUM_LAYERS} layers",
        "first layers",
        num_layers=num_layers,
    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--hidden-dim", type=int, default=192, help="of the language model")
    add("--steps", type=int, default=9000, help="of its training")
    add("--short-steps", type=int, default=2500, help="first, on short texts")
    add(
        "--sequences",
        type=int,
        default=6,
        help="in a step, short ones twice",
    )
    add("--model-learning-rate", type=float, default=1e-3, help="of it")
    add("--dtype", default="mixed_bfloat16", help="of it")
    add("--train-size", type=int, default=2000)
    add("--evaluation-size", type=int, default=300, help="of each kind")
    add("--unlabelled-size", type=int, default=384, help="for calibration")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--learning-rate", type=float, default=1e-3, help="of alignment")
    add("--layers-learning-rates", default="1e-3,3e-3", help="of first layers")
    add("--timed-batch", type=int, default=8)
    add("--num-rounds", type=int, default=7, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        rows="dense,r4_aligned,speedup2,truncated2,first2",
        seeds="0",
        steps=4,
        short_steps=2,
        sequences=2,
        dtype="float32",
        hidden_dim=32,
        train_size=6,
        evaluation_size=2,
        unlabelled_size=6,
        epochs=1,
        batch_size=3,
        layers_learning_rates="1e-3",
        timed_batch=1,
        num_rounds=1,
    )


# === The language model ===


def make_language_model(hidden_dim, num_layers=NUM_LAYERS, dtype="float32"):
    backbone = keras_hub.models.Llama3Backbone(
        vocabulary_size=prompt_tasks.VOCABULARY_SIZE,
        num_layers=num_layers,
        num_query_heads=hidden_dim // 32,
        num_key_value_heads=max(hidden_dim // 96, 1),
        hidden_dim=hidden_dim,
        intermediate_dim=hidden_dim * 8 // 3,
        rope_max_wavelength=10000,
        tie_word_embeddings=True,
        dtype=dtype,
    )
    return keras_hub.models.Llama3CausalLM(backbone, preprocessor=None)


class Sequences(keras.utils.PyDataset):
    """New sequences in every step; words of texts count a tenth."""

    def __init__(self, arguments):
        super().__init__(workers=4, max_queue_size=16)
        self.arguments = arguments

    def __len__(self):
        return self.arguments.steps

    def __getitem__(self, step):
        size, text_length = self.arguments.sequences, prompt_tasks.TEXT_LENGTH
        if step < self.arguments.short_steps:
            size, text_length = 2 * size, SHORT_TEXT_LENGTH
        examples = prompt_tasks.Examples("train", (0, step), text_length)
        token_ids, is_answer = examples.sequences(
            size, asks_before=step % 2 == 1
        )
        inputs = {
            "token_ids": token_ids[:, :-1].astype("int32"),
            "padding_mask": np.ones_like(token_ids[:, :-1], "int32"),
        }
        weights = np.where(is_answer[:, 1:], 1.0, 0.1).astype("float32")
        return inputs, token_ids[:, 1:].astype("int32"), weights


def train_language_model(arguments):
    """A dense model that answers, in float32."""
    keras.utils.set_random_seed(0)
    trained = make_language_model(arguments.hidden_dim, dtype=arguments.dtype)
    path = arguments.output / "first_stages" / f"{name_of(arguments)}.npz"

    def train():
        steps, rate = arguments.steps, arguments.model_learning_rate
        schedule = keras.optimizers.schedules.CosineDecay(
            0.0, steps, warmup_target=rate, warmup_steps=min(steps, 200)
        )
        trained.compile(
            optimizer=keras.optimizers.AdamW(schedule, global_clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
        )
        history = keras.Model.fit(
            trained, Sequences(arguments), shuffle=False, verbose=2
        )
        return {"loss": history.history["loss"]}

    bookkeeping.keep(path, bookkeeping.all_weights(trained), train)
    model = make_language_model(arguments.hidden_dim)
    model.set_weights(trained.get_weights())
    return model


def first_layers(model, num_layers, hidden_dim):
    shallow = make_language_model(hidden_dim, num_layers)
    for layer in shallow.backbone.layers:
        source = model.backbone.get_layer(layer.name)
        layer.set_weights(source.get_weights())
    return shallow


# === Examples ===


def make_prompts(split, size, seed=0):
    """Prompts, as many of each kind, mixed."""
    size //= len(prompt_tasks.KINDS)
    examples = prompt_tasks.Examples(split, seed)
    kinds = [examples.prompts(kind, size) for kind in prompt_tasks.KINDS]
    order = np.random.default_rng(seed).permutation(len(kinds) * size)
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[order], *kinds
    )


def responses(inputs):
    """Labels and weights of what follows a prompt, and the inputs for them."""
    token_ids, mask = inputs["token_ids"], inputs["padding_mask"]
    start = prompt_tasks.PROMPT_LENGTH
    shorter = {name: values[:, :-1] for name, values in inputs.items()}
    return shorter, token_ids[:, start:], mask[:, start:].astype("float32")


def cut(inputs, divisor):
    """Hides all of a prompt but its start and its last n / divisor tokens.

    They keep their positions: the model has learned where questions are.
    """
    mask = inputs["padding_mask"].copy()
    starts = mask.argmax(axis=1)
    width = prompt_tasks.PROMPT_LENGTH // divisor
    mask[:, : prompt_tasks.PROMPT_LENGTH - width] = 0
    mask[np.arange(len(mask)), starts] = 1
    return {**inputs, "padding_mask": mask}


def accuracies(model, split, arguments, divisor=1):
    """The share of answers that are right, by kind."""
    found = {}
    for kind in prompt_tasks.KINDS:
        examples = prompt_tasks.Examples(split, seed=0)
        inputs = examples.prompts(kind, arguments.evaluation_size)
        inputs, labels, weights = responses(inputs)
        if divisor > 1:
            inputs = cut(inputs, divisor)
        # In the place of greedy decoding: an answer whose tokens are all
        # right, each behind the right ones, is what that writes.
        logits = keras.Model.predict(model, inputs, batch_size=32, verbose=0)
        guesses = logits[:, -labels.shape[1] :].argmax(axis=-1)
        is_right = (guesses == labels) | (weights == 0)
        found[kind] = float(is_right.all(axis=1).mean())
    return found


# === Rows ===


class Runner:
    """Does the runs.

    Args:
        dense: the language model.
        arguments: of the command line.
    """

    def __init__(self, dense, arguments):
        self.dense, self.arguments = dense, arguments
        self.folder = arguments.output / "first_stages" / name_of(arguments)
        self.best_shallow = bookkeeping.AtBestRate(
            self.shallow,
            arguments.layers_learning_rates,
            lambda _, model: statistics.mean(
                accuracies(model, "validation", arguments).values()
            ),
        )

    def run(self, name, seed):
        row = ROWS[name]
        model, notes = self.make(name, seed)
        for split in ("validation", "test"):
            notes[split] = accuracies(model, split, self.arguments, row.divisor)
        return notes

    def make(self, name, seed):
        row = ROWS[name]
        keras.utils.set_random_seed(seed)
        if row.is_routed:
            model, notes = self.calibrated(name, seed)
            if row.is_aligned:
                notes |= bookkeeping.timed(lambda: self.align(model, seed))
            return model, notes
        if row.num_layers < NUM_LAYERS:
            return self.best_shallow(row, seed)
        return self.dense, {}

    def convert(self, model, **settings):
        coda = keras_coda.coda_wrap(model, **SETTINGS, **settings)
        coda.prompt_length = prompt_tasks.PROMPT_LENGTH
        return coda

    def calibrated(self, name, seed):
        row = ROWS[name]
        coda = self.convert(self.dense, reduction_factor=row.factor or 1)
        path = self.folder / f"{name.removesuffix('_aligned')}-{seed}.npz"

        def calibrate():
            inputs = make_prompts(
                "train", self.arguments.unlabelled_size, 1000 + seed
            )
            calibration = keras_coda.training.calibrate(
                coda, inputs, speedup=row.speedup, verbose=0
            )
            return {"reduction_factor": calibration.reduction_factor}

        notes = bookkeeping.keep(path, trained_weights(coda), calibrate)
        keras_coda.set_reduction_factor(coda, notes["reduction_factor"])
        return coda, notes

    def train_part(self, seed):
        return make_prompts("train", self.arguments.train_size, seed)

    def align(self, coda, seed):
        arguments, inputs = self.arguments, self.train_part(seed)
        keras_coda.training.align(
            coda,
            self.dense,
            inputs,
            target="fine_tuned",
            logits_weight=1.0,
            temperature=2.0,
            optimizer=quality_tasks.make_optimizer(
                arguments.learning_rate,
                len(inputs["token_ids"]),
                arguments.epochs,
                arguments.batch_size,
            ),
            epochs=arguments.epochs,
            batch_size=arguments.batch_size,
            verbose=0,
        )
        return {}

    def shallow(self, row, rate, seed):
        """The first layers, with adapters that learned the answers."""
        keras.utils.set_random_seed(seed)
        arguments = self.arguments
        coda = self.convert(
            first_layers(self.dense, row.num_layers, arguments.hidden_dim),
            reduction_factor=1,
        )
        inputs, labels, weights = responses(self.train_part(seed))
        coda.compile(
            optimizer=quality_tasks.make_optimizer(
                rate, len(labels), arguments.epochs, arguments.batch_size
            ),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
        )

        def fit():
            keras.Model.fit(
                coda,
                inputs,
                labels,
                sample_weight=weights,
                epochs=arguments.epochs,
                batch_size=arguments.batch_size,
                verbose=0,
            )
            return {"learning_rate": rate}

        return coda, bookkeeping.timed(fit)


def name_of(arguments):
    return "prompt_quality-quick" if arguments.quick else "prompt_quality"


# === Speed ===


def speed_key(key, run):
    name, _ = key.split("/")
    if not ROWS[name].is_routed:
        return name
    return ",".join(f"{factor:g}" for factor in run["reduction_factor"])


def measure_speedups(results, runner):
    """Of the first token, over the dense model, all in turn."""
    arguments = runner.arguments
    calls = {}
    for key, run in results.runs.items():
        name, _ = key.split("/")
        row, model = ROWS[name], runner.dense
        if row.is_routed:
            model = runner.convert(
                model, reduction_factor=run["reduction_factor"]
            )
        elif row.num_layers < NUM_LAYERS:
            model = first_layers(model, row.num_layers, arguments.hidden_dim)
        calls.setdefault(
            speed_key(key, run),
            prompts.generation(
                model,
                prompt_tasks.PROMPT_LENGTH // row.divisor,
                num_tokens=1,
                batch_size=arguments.timed_batch,
            ),
        )
    seconds = timing.interleave(calls, arguments.num_rounds)
    results.add(
        speedups={
            key: seconds["dense"] / value for key, value in seconds.items()
        }
    )


# === Results ===


def summarize(results):
    """One record for each row."""

    def mean(part):
        return statistics.mean(part[kind] for kind in prompt_tasks.KINDS)

    records = []
    for name, row in ROWS.items():
        runs = results.of(name)
        if not runs:
            continue
        kinds = {
            kind: statistics.mean(
                100 * run["test"][kind] for run in runs.values()
            )
            for kind in prompt_tasks.KINDS
        }
        test, error = bookkeeping.mean_and_error(
            [100 * mean(run["test"]) for run in runs.values()]
        )
        records.append(
            {
                "model": row.text,
                "speedup": results.mean_speedup(
                    starmap(speed_key, runs.items())
                ),
                **kinds,
                "test": test,
                "error": error,
                "validation": statistics.mean(
                    100 * mean(run["validation"]) for run in runs.values()
                ),
                "seeds": len(runs),
            }
        )
    return records


def plot(records, path):
    from matplotlib.figure import Figure

    families = {row.text: row.family for row in ROWS.values()}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for index, family in enumerate(dict.fromkeys(families.values())):
        points = sorted(
            (record["speedup"], record["test"], record["error"] or 0)
            for record in records
            if families[record["model"]] == family and record["speedup"]
        )
        if points:
            axes.errorbar(
                *zip(*points),
                capsize=2,
                color=f"C{index}",
                marker="osD^vPX<>"[index],
                label=family,
            )
    axes.set_xlabel("speed of the first token, dense = 1")
    axes.set_ylabel("answers that are right, %")
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=80)


def main():
    arguments = parse_arguments()
    path = arguments.output / f"{name_of(arguments)}.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    runner = Runner(train_language_model(arguments), arguments)
    results.do(
        arguments,
        # Nothing is trained in the others.
        lambda name: name != "dense" and ROWS[name].divisor == 1,
        runner.run,
    )
    if not arguments.no_speed:
        measure_speedups(results, runner)
    records = summarize(results)
    table = timing.markdown_table(records)
    timing.write(path.with_suffix(".md"), table)
    plot(records, path.with_suffix(".png"))
    print(table)


if __name__ == "__main__":
    main()
