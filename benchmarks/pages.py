"""Reading a field of a large page, most of which is empty, in fewer patches.

    KERAS_BACKEND=jax python benchmarks/pages.py --dtype mixed_bfloat16

The paper's vision models read documents of 4,096 patches (Table 6, Figure 6).
No such model is at hand, so a small one of the same shape is trained first, see
examples/page_reader.py: on the patches that hold text and some others of a
page, then on whole pages; minutes on a GPU, kept in `first_stages` of the
output folder.

- CoDA is calibrated on `--unlabelled-size` pages, and aligned to the dense
  model, without answers, in `--align-steps` steps on others.
- The dense model gets k patches alone: those of the highest contrast, or any.
- The dense model gets the page at half or a quarter of its resolution, after
  `--fine-tune-steps` steps on such pages, with answers.

The validation part has other pages than the test part, and neither is trained
on. Speed is that of a batch of `--timed-batch` pages in float32, dense = 1.
Seeds are of what follows the training of the dense model. Writes pages.json,
.md and .png, and pages-routed.png, a page with the patches that two blocks
computed; finished runs are written at once. After `--minutes` no further run
starts; with `--minutes 0` speed is measured alone.
"""

import argparse
import pathlib
import sys
import time
from typing import NamedTuple

import bookkeeping
import inference
import keras
import numpy as np
import timing

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import page_data
import page_reader

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.conditional_transformer_block import ATTENTIONS

FACTORS = (4, 8, 16, 32)
SETTINGS = {"adapter_dim": 32, "shortcut_dim": 64}
# Of the pages of each part.
SEEDS = {"validation": 10**6, "test": 2 * 10**6}


class Row(NamedTuple):
    """One way to read a page.

    Attributes:
        text: what table and figure call it; a line in the figure is of rows
            that are called alike.
        factor: how many times fewer patches are computed, or kept.
        attention: optional, of a converted model.
        is_aligned: whether what was calibrated is trained.
        rule: optional. Which patches are kept, see `choose_patches`.
        shrunk: what the sides of the page are divided by.
    """

    text: str
    factor: int = 1
    attention: str | None = None
    is_aligned: bool = False
    rule: str | None = None
    shrunk: int = 1

    @property
    def is_trained(self):
        """Whether anything depends on a seed."""
        return bool(self.attention) or self.shrunk > 1

    @property
    def factor_and_recipe(self):
        """By which the row of the picture is chosen."""
        return self.factor, self.attention == "k_to_all", self.is_aligned

    @property
    def architecture(self):
        """What its speed depends on."""
        return f"{self.attention or 'dense'}/{self.factor}"

    def page_arguments(self, num_patches):
        """Those of `make_batch`."""
        arguments = {"num_patches": num_patches, "shrunk": self.shrunk}
        if self.rule:
            arguments["rule"] = self.rule
            arguments["num_shown"] = num_patches // self.factor
        return arguments


def make_rows():
    rows = {"dense": Row("dense")}
    for factor in FACTORS:
        rows[f"r{factor}"] = Row("k_to_all, calibrated", factor, "k_to_all")
    for shrunk in (2, 4):
        rows[f"shrunk{shrunk}"] = Row(
            "dense, page shrunk, fine-tuned", shrunk**2, shrunk=shrunk
        )
    for rule, text in (
        ("contrast", "dense, patches of high contrast"),
        ("random", "dense, patches at random"),
    ):
        for factor in FACTORS:
            rows[f"{rule}{factor}"] = Row(text, factor, rule=rule)
    for attention in ATTENTIONS:
        # The extremes first, for when the time is short.
        for factor in (32, 8, 4, 16):
            rows[f"{attention}{factor}_aligned"] = Row(
                f"{attention}, aligned", factor, attention, is_aligned=True
            )
    return rows


ROWS = make_rows()


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rows", default=",".join(ROWS), help="default: all")
    add("--seeds", default="0,1,2", help="default: %(default)s")
    add("--num-patches", type=int, default=4096)
    add(
        "--stages",
        default="words:4096:128:64:800,lines:256:128:64:800,"
        "lines:4096:128:64:1500,lines:1024:0:32:250,lines:4096:0:4:500",
        help="of the dense model, hint:patches:kept:pages:steps, where 0 keeps "
        "all; default: %(default)s",
    )
    add("--first-learning-rate", type=float, default=1e-3, help="of them")
    add("--num-layers", type=int, default=6)
    add("--hidden-dim", type=int, default=192)
    add("--unlabelled-size", type=int, default=64, help="for calibration")
    add("--align-steps", type=int, default=200)
    add("--fine-tune-steps", type=int, default=600)
    add("--learning-rate", type=float, default=1e-3, help="of both")
    add("--batch-size", type=int, default=8)
    add("--evaluation-size", type=int, default=512, help="of each part")
    add("--timed-batch", type=int, default=8)
    add("--num-rounds", type=int, default=10, help="of timing")
    add("--no-speed", action="store_true", help="measure no speed")
    add("--minutes", type=float, default=float("inf"), help="for the runs")
    timing.add_dtype(parser)
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="small defaults, no meaning")
    return timing.parse_arguments(
        parser,
        rows="dense,r4,shrunk2,contrast4,k_to_k4_aligned",
        seeds="0",
        num_patches=64,
        stages="words:64:40:2:1,lines:64:0:2:1",
        num_layers=2,
        hidden_dim=64,
        unlabelled_size=4,
        align_steps=2,
        fine_tune_steps=2,
        batch_size=2,
        evaluation_size=2,
        timed_batch=1,
        num_rounds=1,
    )


# === The dense model ===


def make_reader(arguments):
    hidden_dim = arguments.hidden_dim
    return page_reader.make_reader(
        page_reader.PageBackbone(
            num_layers=arguments.num_layers,
            hidden_dim=hidden_dim,
            num_heads=hidden_dim // 64,
            intermediate_dim=2 * hidden_dim,
            # Weights are kept by their paths, which begin with it.
            name="pages",
        )
    )


def train_reader(arguments):
    """A dense model that reads whole pages, and notes of its training."""
    keras.utils.set_random_seed(0)
    reader = make_reader(arguments)
    weights = bookkeeping.all_weights(reader)
    notes = {}
    for index, stage in enumerate(arguments.stages.split(",")):
        notes[stage] = bookkeeping.keep(
            first_stage(arguments, f"dense-{index}"),
            weights,
            lambda: train_stage(reader, stage, index, arguments),
        )
    return reader, notes


def train_stage(reader, stage, seed, arguments):
    print(stage)
    hint, *numbers = stage.split(":")
    num_patches, num_shown, batch_size, num_steps = map(int, numbers)
    accuracies = page_reader.train(
        reader,
        num_steps,
        seed,
        learning_rate=arguments.first_learning_rate,
        num_patches=num_patches,
        batch_size=batch_size,
        num_questions=page_data.MAX_LINES,
        num_shown=num_shown or None,
        hint=hint,
    )
    return {"accuracies": accuracies}


def first_stage(arguments, name):
    return bookkeeping.first_stage(arguments, name_of(arguments), name)


def name_of(arguments):
    return "pages-quick" if arguments.quick else "pages"


# === Rows ===


class Runner:
    """Does the runs.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments):
        self.arguments = arguments
        self.dense, self.notes = train_reader(arguments)

    def run(self, name, seed):
        keras.utils.set_random_seed(seed)
        row = ROWS[name]
        model, notes = self.make(name, seed)
        batch_size = self.arguments.batch_size
        for split, pages_seed in SEEDS.items():
            notes[split] = page_reader.accuracy(
                model,
                max(self.arguments.evaluation_size // batch_size, 1),
                pages_seed,
                batch_size=batch_size,
                **row.page_arguments(self.arguments.num_patches),
            )
        return notes

    def make(self, name, seed):
        """The model of a row, trained or as it was kept, and notes."""
        row = ROWS[name]
        if row.attention:
            coda, notes = self.calibrated(row, seed)
            if row.is_aligned:
                notes |= bookkeeping.keep(
                    first_stage(self.arguments, f"{name}-{seed}"),
                    trained_weights(coda),
                    lambda: self.align(coda, seed),
                )
            return coda, notes
        if row.shrunk > 1:
            reader = make_reader(self.arguments)
            reader.set_weights(self.dense.get_weights())
            notes = bookkeeping.keep(
                first_stage(self.arguments, f"{name}-{seed}"),
                bookkeeping.all_weights(reader),
                lambda: self.fine_tune(reader, row, seed),
            )
            return reader, notes
        return self.dense, {"first_stage": self.notes}

    def pages(self, seed, size, to_batch):
        """Whole pages, without answers."""
        batch_size = self.arguments.batch_size
        return page_data.PageBatches(
            max(size // batch_size, 1),
            seed,
            to_batch,
            batch_size=batch_size,
            num_patches=self.arguments.num_patches,
        )

    def calibrated(self, row, seed):
        coda = convert(self.dense, row)
        # With `k_to_all` what is fitted does not depend on the factor.
        factor = row.factor if row.attention == "k_to_k" else "any"
        path = first_stage(self.arguments, f"{row.attention}-{factor}-{seed}")

        def calibrate():
            size = self.arguments.unlabelled_size
            pages = self.pages(1000 + seed, size, lambda inputs, _: inputs)
            calibration = keras_coda.training.calibrate(
                coda,
                [pages[index] for index in range(len(pages))],
                are_logits=True,
                verbose=0,
            )
            return {"fits": calibration.blocks}

        return coda, bookkeeping.keep(path, trained_weights(coda), calibrate)

    def align(self, coda, seed):
        steps = self.arguments.align_steps
        history = keras_coda.training.align(
            coda,
            self.dense,
            self.pages(
                2000 + seed,
                steps * self.arguments.batch_size,
                lambda inputs, _: (inputs,),
            ),
            logits_weight=1.0,
            temperature=2.0,
            optimizer=page_reader.make_optimizer(
                self.arguments.learning_rate, steps
            ),
            verbose=0,
        )
        return {"divergence": history.history["divergence"][-1]}

    def fine_tune(self, reader, row, seed):
        accuracies = page_reader.train(
            reader,
            self.arguments.fine_tune_steps,
            3000 + seed,
            learning_rate=self.arguments.learning_rate,
            batch_size=self.arguments.batch_size,
            num_questions=page_data.MAX_LINES,
            verbose=0,
            **row.page_arguments(self.arguments.num_patches),
        )
        return {"accuracies": accuracies}


def convert(reader, row):
    return keras_coda.coda_wrap(
        reader,
        reduction_factor=row.factor,
        attention=row.attention,
        **SETTINGS,
    )


# === Speed ===


def measure_speeds(results, arguments):
    """Of a batch of pages in float32, over the dense model, all in turn."""
    keras.config.set_dtype_policy("float32")
    dense = make_reader(arguments)
    setting = argparse.Namespace(mode="default")
    calls = {}
    for name in arguments.rows.split(","):
        row = ROWS[name]
        if row.architecture in calls:
            continue
        inputs, _ = page_data.make_batch(
            np.random.default_rng(0),
            arguments.timed_batch,
            num_patches=arguments.num_patches,
            num_shown=(
                None if row.attention else arguments.num_patches // row.factor
            ),
        )
        model = convert(dense, row) if row.attention else dense
        calls[row.architecture] = inference.make_call(model, inputs, setting)
    seconds = timing.interleave(calls, arguments.num_rounds, num_warmup=2)
    dense_seconds = seconds[ROWS["dense"].architecture]
    print({key: f"{1000 * value:.1f} ms" for key, value in seconds.items()})
    results.add(
        speedups={key: dense_seconds / value for key, value in seconds.items()}
    )
    keras.config.set_dtype_policy(arguments.dtype)


# === Results ===


def summarize(results):
    """One record for each row."""
    records = []
    for name, row in ROWS.items():
        runs = results.of(name).values()
        if not runs:
            continue
        test, error = bookkeeping.mean_and_error(
            [100 * run["test"] for run in runs]
        )
        validation, _ = bookkeeping.mean_and_error(
            [100 * run["validation"] for run in runs]
        )
        records.append(
            {
                "model": row.text,
                "r": row.factor,
                "speedup": results.speedups.get(row.architecture),
                "test": test,
                "error": error,
                "validation": validation,
                "seeds": len(runs),
            }
        )
    return records


def plot(records, path):
    """Accuracy against r, and against speed."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(record["model"] for record in records))
    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, x, label in zip(
        panels,
        ("r", "speedup"),
        ("patches of the page / patches computed", "speed, dense = 1"),
    ):
        for index, name in enumerate(names):
            points = sorted(
                (record[x], record["test"], record["error"] or 0)
                for record in records
                if record["model"] == name and record[x]
            )
            if points:
                axes.errorbar(
                    *zip(*points),
                    capsize=2,
                    color=f"C{index}",
                    marker="osD^vPX"[index],
                    label=name,
                )
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(label)
    panels[0].set_ylabel("answers that are right, %")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=80)


def plot_page(results, runner, path):
    """A page, and what the first block and one half-way computed of it.

    At the largest reduction factor that was run, aligned if that was. Of the
    last block the question alone is read: what else it computes is arbitrary.
    """
    from matplotlib.figure import Figure

    names = {key.split("/")[0] for key in results.runs if key.endswith("/0")}
    routed = [name for name in names if ROWS[name].attention]
    if not routed:
        return
    coda, _ = runner.make(
        max(routed, key=lambda name: ROWS[name].factor_and_recipe), 0
    )
    inputs, _ = page_data.make_batch(
        np.random.default_rng(5), 1, runner.arguments.num_patches
    )
    routing = keras_coda.analysis.routing(coda, inputs)
    # Without the question.
    weights = routing.weights_by_position()[0, :, 1:]
    pictures = {"page": np.ones_like(weights[0])}
    for block in (0, len(weights) // 2):
        pictures[routing.names[block]] = weights[block]
    figure = Figure(figsize=(15, 5.3), layout="constrained")
    for axes, (title, shown) in zip(figure.subplots(1, 3), pictures.items()):
        axes.imshow(draw_page(inputs, shown))
        axes.set_title(title)
        axes.set_axis_off()
    figure.savefig(path, dpi=70)


def draw_page(inputs, shown):
    """A picture of the first page, blue where patches are not shown."""
    size = page_data.PATCH_SIZE
    real = inputs["padding_mask"][0]
    rows, columns = inputs["rows"][0][real], inputs["columns"][0][real]
    picture = np.zeros((rows.max() + 1, size, columns.max() + 1, size, 3))
    # Without the grain of the paper, which makes large files.
    patches = np.round(inputs["patches"][0][real] / 24) * 24 / 255
    patches = patches.clip(0, 1).reshape(-1, size, size, 1)
    share = 0.15 + 0.85 * shown[real][:, None, None, None]
    left_out = np.array([0.45, 0.6, 0.85])
    picture[rows, :, columns] = share * patches + (1 - share) * left_out
    height, width = (rows.max() + 1) * size, (columns.max() + 1) * size
    return picture.reshape(height, width, 3)


def main():
    arguments = parse_arguments()
    # For all alike.
    keras.config.disable_flash_attention()
    path = arguments.output / f"{name_of(arguments)}.json"
    results = bookkeeping.Results(path, bookkeeping.setup(arguments))
    if not arguments.no_speed and not results.speedups:
        measure_speeds(results, arguments)
    if arguments.minutes:
        do_runs(results, path, arguments)
    records = summarize(results)
    table = timing.markdown_table(records)
    timing.write(path.with_suffix(".md"), table)
    plot(records, path.with_suffix(".png"))
    print(table)


def do_runs(results, path, arguments):
    stop = time.monotonic() + 60 * arguments.minutes
    runner = Runner(arguments)
    results.do(
        arguments,
        lambda name: ROWS[name].is_trained,
        lambda *row: bookkeeping.timed(lambda: runner.run(*row)),
        stop,
    )
    plot_page(results, runner, path.with_name(f"{path.stem}-routed.png"))


if __name__ == "__main__":
    main()
