"""What a T5 writes whose encoder is made faster, at equal measured speed.

    KERAS_BACKEND=torch python benchmarks/generation.py

No pretrained T5 is at hand, so a small one of T5 1.1's architecture (four
layers each) is trained first on the kinds of texts of generation_tasks.py: less
than an hour on two cores, kept in `first_stages` of the output folder.

- CoDA is what `keras_coda.training.accelerate` makes of it, from
  `--alignment-size` texts and what is to be written about them.
- The first encoder layers alone get dense adapters that are *taught*: trained
  on as many examples with what is to be written, at the learning rate that is
  best on the validation part with seed 0. So are all layers, and CoDA.
- Texts are cut to their first tokens; the question comes first.

Greedy. Copies and answers count if they are exactly right; answers have an F1,
too, and summaries ROUGE-L, by torchmetrics. Their mean, in which answers count
by exactness, is the score. Two speeds, over the dense T5, in float32: that of
the encoder and that of `generate`, for `--timed-batch` texts. Seeds are of what
follows the training of the T5. Writes generation.json and .md; finished runs
are written at once. Needs `apt-get -o Acquire::Languages=en update` and

    pip install python-debian torchmetrics
"""

import argparse
import functools
import math
import pathlib
import statistics
from typing import NamedTuple

import bookkeeping
import generation_tasks
import keras
import keras_hub
import numpy as np
import quality_tasks
import timing
from keras import ops
from torchmetrics.functional import text as metrics

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights

NUM_LAYERS, HEAD_DIM = 4, 32
ADAPTER_DIM = 32
ROUTED_SETTINGS = {"shortcut_dim": 64}


class Row(NamedTuple):
    """One way to write.

    Attributes:
        text: what the table calls it.
        speedup: optional, what CoDA is asked for.
        num_layers: of the first encoder layers alone.
        divisor: texts are cut to n / divisor tokens.
        is_taught: whether it is trained on what is to be written, at last.
    """

    text: str
    speedup: float | None = None
    num_layers: int = NUM_LAYERS
    divisor: int = 1
    is_taught: bool = False

    @property
    def has_seeds(self):
        return self.speedup is not None or self.is_taught


ROWS = {"dense": Row("dense")}
for speedup in (1.5, 2, 2.5, 3.5):
    ROWS[f"coda{speedup}"] = Row(f"CoDA, {speedup} asked for", speedup)
ROWS["adapters"] = Row("dense adapters, taught", is_taught=True)
for num_layers in (3, 2):
    ROWS[f"first{num_layers}"] = Row(
        f"first {num_layers} of {NUM_LAYERS} encoder layers, taught",
        num_layers=num_layers,
        is_taught=True,
    )
for speedup in (2, 3.5):
    ROWS[f"coda{speedup}_taught"] = Row(
        f"CoDA, {speedup} asked for, taught", speedup, is_taught=True
    )
for divisor in (2, 3):
    ROWS[f"truncated{divisor}"] = Row(
        f"first n / {divisor} tokens", divisor=divisor
    )


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--train-size", type=int, default=32000, help="of the T5")
    add("--train-epochs", type=int, default=2, help="of the T5")
    add("--train-batch-size", type=int, default=16, help="of the T5")
    add("--train-learning-rate", type=float, default=1e-2, help="of the T5")
    add("--hidden-dim", type=int, default=128, help="of the T5")
    add("--alignment-size", type=int, default=2000)
    add("--evaluation-size", type=int, default=400, help="of each kind")
    add("--epochs", type=int, default=3)
    add("--batch-size", type=int, default=32)
    add("--evaluation-batch-size", type=int, default=200)
    add("--learning-rate", type=float, default=1e-3, help="of alignment")
    add(
        "--taught-learning-rates", default="1e-3,3e-3", help="of what is taught"
    )
    add("--dtype", default="float32", help="default: %(default)s")
    add("--timed-batch", type=int, default=8)
    add("--num-rounds", type=int, default=7, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        rows="dense,coda2_taught,first3,truncated2",
        seeds="0",
        train_size=12,
        train_epochs=1,
        train_batch_size=6,
        hidden_dim=64,
        alignment_size=12,
        evaluation_size=4,
        epochs=1,
        batch_size=6,
        evaluation_batch_size=4,
        taught_learning_rates="1e-3",
        timed_batch=2,
        num_rounds=1,
    )


# === The T5 ===


def make_t5(hidden_dim):
    backbone = keras_hub.models.T5Backbone(
        vocabulary_size=generation_tasks.VOCABULARY_SIZE,
        num_layers=NUM_LAYERS,
        num_heads=hidden_dim // HEAD_DIM,
        hidden_dim=hidden_dim,
        intermediate_dim=2 * hidden_dim,
        key_value_dim=HEAD_DIM,
        dropout=0.0,
        activation="gelu",
        # Tied, it learned nothing in 3,000 steps.
        tie_embedding_weights=False,
    )
    return with_greedy_sampler(
        keras_hub.models.T5Seq2SeqLM(
            backbone, preprocessor=generation_tasks.make_preprocessor()
        )
    )


def with_greedy_sampler(model, optimizer="sgd"):
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
        sampler="greedy",
    )
    return model


def make_arrays(size, seed):
    """Examples of all kinds, mixed: inputs, labels and weights of these."""
    texts, targets = generation_tasks.make_mixture("train", size, seed)
    order = np.random.default_rng(seed).permutation(len(texts))
    tokens = generation_tasks.make_preprocessor()(
        {
            "encoder_text": [texts[index] for index in order],
            "decoder_text": [targets[index] for index in order],
        }
    )
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tokens)


class RelativeAdam(keras.optimizers.Adam):
    """Adam whose steps are relative to the size of what they change.

    T5 starts with embeddings of standard deviation 1 and queries of 1 / 128,
    for Adafactor, whose steps are that as well (Shazeer and Stern, 2018).
    """

    def update_step(self, gradient, variable, learning_rate):
        size = ops.sqrt(ops.mean(ops.square(variable)))
        learning_rate = learning_rate * ops.maximum(size, 1e-3)
        super().update_step(gradient, variable, learning_rate)


def fit(
    model,
    size,
    seed,
    batch_size,
    epochs,
    learning_rate,
    optimizer_cls=keras.optimizers.Adam,
    verbose=0,
    callbacks=(),
):
    inputs, labels, weights = make_arrays(size, seed)
    schedule = quality_tasks.make_schedule(
        learning_rate, len(labels), epochs, batch_size
    )
    with_greedy_sampler(model, optimizer_cls(schedule))
    history = keras.Model.fit(
        model,
        inputs,
        labels,
        sample_weight=weights,
        batch_size=batch_size,
        epochs=epochs,
        verbose=verbose,
        callbacks=list(callbacks),
    )
    return {"loss": history.history["loss"]}


def train_t5(arguments):
    """A dense T5 that does what generation_tasks.py asks for."""
    keras.utils.set_random_seed(0)
    model = make_t5(arguments.hidden_dim)
    path = first_stage(arguments, "t5")
    # What was stopped goes on.
    backup = keras.callbacks.BackupAndRestore(path.with_suffix(""))
    bookkeeping.keep(
        path,
        bookkeeping.all_weights(model),
        lambda: fit(
            model,
            arguments.train_size,
            seed=0,
            batch_size=arguments.train_batch_size,
            epochs=arguments.train_epochs,
            learning_rate=arguments.train_learning_rate,
            optimizer_cls=RelativeAdam,
            callbacks=[backup],
            verbose=2,
        ),
    )
    return model


# === Scores ===


def scores(model, split, arguments, divisor=1):
    """In percent, by kind of text."""
    model.preprocessor = generation_tasks.make_preprocessor(
        generation_tasks.SEQUENCE_LENGTH // divisor
    )
    found = {}
    for kind in generation_tasks.KINDS:
        texts, targets = generation_tasks.make_examples(
            kind, split, arguments.evaluation_size
        )
        written = write(model, texts, arguments.evaluation_batch_size)
        if kind == "summarising":
            rouge = metrics.rouge_score(written, targets, rouge_keys="rougeL")
            found[kind] = 100 * float(rouge["rougeL_fmeasure"])
            continue
        squad = metrics.squad(
            [
                {"prediction_text": text, "id": str(index)}
                for index, text in enumerate(written)
            ],
            [
                {"answers": {"text": [text]}, "id": str(index)}
                for index, text in enumerate(targets)
            ],
        )
        found[kind] = float(squad["exact_match"])
        if kind == "answering":
            found["answering, F1"] = float(squad["f1"])
    model.preprocessor = generation_tasks.make_preprocessor()
    return found


def write(model, texts, batch_size):
    written = []
    for start in range(0, len(texts), batch_size):
        written += model.generate(
            texts[start : start + batch_size],
            max_length=generation_tasks.RESPONSE_LENGTH,
        )
    return written


def score(found):
    return statistics.mean(found[kind] for kind in generation_tasks.KINDS)


# === Rows ===


class Runner:
    """Does the runs.

    Args:
        dense: the T5.
        arguments: of the command line.
    """

    def __init__(self, dense, arguments):
        self.dense, self.arguments = dense, arguments
        self.best_taught = bookkeeping.AtBestRate(
            self.taught,
            arguments.taught_learning_rates,
            lambda _, model: score(scores(model, "validation", arguments)),
        )

    def run(self, name, seed):
        row = ROWS[name]
        model, notes = self.make(row, seed)
        for split in ("validation", "test"):
            notes[split] = scores(model, split, self.arguments, row.divisor)
        return notes

    def make(self, row, seed):
        keras.utils.set_random_seed(seed)
        if row.is_taught:
            return self.best_taught(row, seed)
        if row.speedup is not None:
            return self.accelerated(row.speedup, seed)
        return self.dense, {}

    def accelerated(self, speedup, seed):
        arguments = self.arguments
        model = convert(self.dense, 1, **ROUTED_SETTINGS)

        def accelerate():
            inputs, _, _ = make_arrays(arguments.alignment_size, 1000 + seed)
            fast, calibration = keras_coda.training.accelerate(
                self.dense,
                inputs,
                speedup=speedup,
                epochs=arguments.epochs,
                learning_rate=arguments.learning_rate,
                batch_size=arguments.batch_size,
                seed=seed,
                verbose=0,
                adapter_dim=ADAPTER_DIM,
                **ROUTED_SETTINGS,
            )
            model.set_weights(fast.get_weights())
            return {
                "reduction_factor": calibration.reduction_factor,
                "speedup": calibration.speedup,
                "error": float(calibration.error),
            }

        path = first_stage(arguments, f"coda{speedup}-{seed}")
        notes = bookkeeping.keep(path, trained_weights(model), accelerate)
        model.reduction_factor = notes["reduction_factor"]
        return model, notes

    def taught(self, row, learning_rate, seed):
        """A model that is trained on what is to be written."""
        keras.utils.set_random_seed(seed)
        arguments = self.arguments
        if row.speedup is None:
            model = convert(self.dense, first_layers_factors(row.num_layers))
        else:
            model, _ = self.accelerated(row.speedup, seed)

        def train():
            fit(
                model,
                arguments.alignment_size,
                1000 + seed,
                arguments.batch_size,
                arguments.epochs,
                learning_rate,
            )
            return {
                "learning_rate": learning_rate,
                "reduction_factor": model.reduction_factor,
            }

        return model, bookkeeping.timed(train)


def first_layers_factors(num_layers):
    return [1] * num_layers + [math.inf] * (NUM_LAYERS - num_layers)


def convert(dense, reduction_factor, **settings):
    coda = keras_coda.coda_wrap(
        dense,
        reduction_factor=reduction_factor,
        adapter_dim=ADAPTER_DIM,
        **settings,
    )
    return with_greedy_sampler(coda)


def name_of(arguments):
    return "generation-quick" if arguments.quick else "generation"


def first_stage(arguments, name):
    return bookkeeping.first_stage(arguments, name_of(arguments), name)


# === Speed ===


def speed_key(key, run):
    """What the speed of a run depends on."""
    name, _ = key.split("/")
    if ROWS[name].speedup is None:
        return name
    return ",".join(f"{factor:g}" for factor in run["reduction_factor"])


def measure_speedups(results, arguments):
    """Of the encoder and of `generate`, over the dense T5, all in turn."""
    keras.config.set_dtype_policy("float32")
    dense = make_t5(arguments.hidden_dim)
    texts, _ = generation_tasks.make_mixture("test", 3 * arguments.timed_batch)
    texts = texts[: arguments.timed_batch]
    calls = {}
    for key, run in results.runs.items():
        name, _ = key.split("/")
        row, model = ROWS[name], dense
        if row.has_seeds:
            model = convert(
                dense,
                run["reduction_factor"],
                **ROUTED_SETTINGS if row.speedup is not None else {},
            )
        length = generation_tasks.SEQUENCE_LENGTH // row.divisor
        calls[speed_key(key, run)] = (
            encoder_call(model, texts, length),
            generate_call(model, texts, length),
        )
    for number, kind in enumerate(("encoder", "generate")):
        seconds = timing.interleave(
            {name: pair[number] for name, pair in calls.items()},
            arguments.num_rounds,
        )
        results.add(
            speedups={
                f"{kind}/{name}": seconds["dense"] / value
                for name, value in seconds.items()
            }
        )


def encoder_call(model, texts, length):
    inputs = tokens(texts, length)
    names = ("encoder_token_ids", "encoder_padding_mask")
    backbone = model.backbone
    encoder = keras.Model(
        {name: backbone.input[name] for name in names},
        backbone.output["encoder_sequence_output"],
    )
    inputs = {name: inputs[name] for name in names}
    return functools.partial(encoder.predict_on_batch, inputs)


def generate_call(model, texts, length):
    inputs = tokens(texts, length)

    def generate():
        preprocessor, model.preprocessor = model.preprocessor, None
        # To the end, whatever is written.
        model.generate(inputs, stop_token_ids=None)
        model.preprocessor = preprocessor

    return generate


def tokens(texts, length):
    preprocessor = generation_tasks.make_preprocessor(length)
    return preprocessor.generate_preprocess(
        texts, sequence_length=generation_tasks.RESPONSE_LENGTH
    )


# === Results ===


def summarize(results):
    """One record for each row."""
    records = []
    for name, row in ROWS.items():
        runs = results.of(name)
        if not runs:
            continue
        test, error = bookkeeping.mean_and_error(
            [score(run["test"]) for run in runs.values()]
        )
        records.append(
            {
                "model": row.text,
                **{
                    f"{kind}, times as fast": results.mean_speedup(
                        f"{kind}/{speed_key(*item)}" for item in runs.items()
                    )
                    for kind in ("encoder", "generate")
                },
                **{
                    kind: statistics.mean(
                        run["test"][kind] for run in runs.values()
                    )
                    for kind in next(iter(runs.values()))["test"]
                },
                "test": test,
                "error": error,
                "validation": statistics.mean(
                    score(run["validation"]) for run in runs.values()
                ),
                "seeds": len(runs),
            }
        )
    return records


def main():
    arguments = parse_arguments()
    keras.config.set_dtype_policy(arguments.dtype)
    path = arguments.output / f"{name_of(arguments)}.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    runner = Runner(train_t5(arguments), arguments)
    results.do(arguments, lambda name: ROWS[name].has_seeds, runner.run)
    if not arguments.no_speed:
        measure_speedups(results, arguments)
    table = timing.markdown_table(summarize(results))
    timing.write(path.with_suffix(".md"), table)
    print(table)


if __name__ == "__main__":
    main()
