"""Makes pictures of routing in docs/gallery, from models that it trains.

    pip install --no-deps -r examples/requirements.txt
    apt-get install dataset-fashion-mnist
    KERAS_BACKEND=torch python docs/make_gallery.py

Some minutes on two cores. The models are those of benchmarks/quality.py.
"""

import argparse
import io
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import keras
import numpy as np
import quality_tasks
from rich.console import Console
from rich.terminal_theme import DEFAULT_TERMINAL_THEME

import keras_coda

# Rich's own format loads a font from the web.
SVG = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{
    font: {char_height}px monospace; line-height: {line_height}px;
}}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
<g clip-path="url(#{unique_id}-clip-terminal)">
<rect width="100%" height="100%" fill="white"/>
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""

GALLERY = ROOT / "docs" / "gallery"


def fine_tune(task, reduction_factor, epochs):
    """Dense adapters first, then calibrated, as docs/recipes.md has it."""
    keras.utils.set_random_seed(0)
    coda = keras_coda.coda_wrap(
        task.make_dense(), reduction_factor=1, shortcut_dim=64
    )
    quality_tasks.compile_and_fit(
        coda,
        *task.train,
        epochs,
        batch_size=32,
        learning_rate=3e-3,
        seed=0,
    )
    coda.reduction_factor = reduction_factor
    keras_coda.training.calibrate(coda, sample(task))
    accuracy = quality_tasks.accuracy(coda, task)
    print(
        f"{task.name}: test accuracy at r = {reduction_factor}: {accuracy:.1%}"
    )
    return coda


def sample(task):
    """What is calibrated on."""
    return keras.tree.map_structure(lambda v: v[:384], task.unlabelled)


def to_svg(text):
    """A picture of what `rich.print` shows."""
    console = Console(file=io.StringIO(), record=True, width=90)
    console.print(text)
    return console.export_svg(theme=DEFAULT_TERMINAL_THEME, code_format=SVG)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train-size", type=int, default=1500)
    parser.add_argument("--test-size", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--vision-epochs", type=int, default=8)
    parser.add_argument("--sequence-length", type=int, default=96)
    arguments = parser.parse_args()
    GALLERY.mkdir(exist_ok=True)

    sizes = {
        "train_size": arguments.train_size,
        "test_size": arguments.test_size,
    }
    task = quality_tasks.FashionTask(
        "fashion", vision_epochs=arguments.vision_epochs, **sizes
    )
    coda = fine_tune(task, 4, arguments.epochs)
    images, labels = task.test
    # The first of each of five classes.
    chosen = [int(np.argmax(labels == label)) for label in (0, 1, 5, 8, 9)]
    figure = keras_coda.analysis.plot_routing(coda, images[chosen], scale=1.5)
    figure.savefig(GALLERY / "fashion.png", dpi=80)

    task = quality_tasks.TextTask(
        "pairs", sequence_length=arguments.sequence_length, **sizes
    )
    coda = fine_tune(task, 4, arguments.epochs)
    # Pairs of different topics and of the same, by turns.
    inputs = keras.tree.map_structure(lambda values: values[:4], task.test[0])
    text = keras_coda.analysis.highlight_routing(coda, inputs, task.tokenizer)
    (GALLERY / "pairs.svg").write_text(to_svg(text))
    figure = keras_coda.analysis.plot_budget(
        coda,
        sample(task),
        score=lambda coda: quality_tasks.accuracy(coda, task),
    )
    figure.savefig(GALLERY / "budget.png", dpi=80)
    print("The pictures are in", GALLERY.relative_to(ROOT))


if __name__ == "__main__":
    main()
