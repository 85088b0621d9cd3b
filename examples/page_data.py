"""Pages with a few short lines, and what a model of patches gets of them.

A page is grey paper with grain, up to a quarter of it covered by photographs.
On it stand up to four lines, `label value`, at random places: the label is one
of 8 words, the value one of 32, each two or three patches wide. What is asked
for is the value beside a label.

As in Pix2Struct (Lee et al., 2023, arXiv:2210.03347) pages have different
shapes, and are cut to at most n patches of 16 x 16 pixels, each of which comes
with the row and the column that it was at. The rest is padding.
"""

import functools
from typing import NamedTuple

import keras
import numpy as np
from PIL import Image
from PIL import ImageDraw
from PIL import ImageFont

LABELS = "name date city item size code team room".split()
VALUES = (
    "apple bread chair delta eagle fruit grape horse ivory juice knife lemon "
    "mango night ocean piano queen river stone tiger uncle violet wheat young "
    "zebra amber cedar flint hazel maple pearl olive"
).split()
# What a patch may show; nothing is the first.
WORDS = ["", *LABELS, *VALUES]
PATCH_SIZE = 16
# Rows and columns of a page are multiples of this, so that it can be shrunk.
STEP = 4
MAX_LINES = 4
FONT_SIZE, LINE_HEIGHT = 14, 14
PAPER = 235


class Page(NamedTuple):
    """A page.

    Attributes:
        image: uint8 array of shape `(height, width)`, 0 is black.
        labels: list of the labels on it, as positions in LABELS.
        values: list of the values beside them, as positions in WORDS.
        hints: dict of int arrays of shape `(rows, columns)`, 0 where a patch
            shows no line: `"words"`, the word that it shows a part of, and
            `"lines"`, the value on its line, as positions in WORDS.
    """

    image: np.ndarray
    labels: list
    values: list
    hints: dict


@functools.cache
def draw_word(word):
    """How much ink each pixel of a word has, from 0 to 1."""
    font = ImageFont.load_default(FONT_SIZE)
    width = int(font.getlength(word)) + 1
    image = Image.new("L", (width, LINE_HEIGHT))
    # The font leaves more room above.
    ImageDraw.Draw(image).text((0, -4), word, fill=255, font=font)
    return np.asarray(image, "float32") / 255


@functools.cache
def textures(size=2048):
    """Paper and photographs, uint8 arrays `(size, size)` to cut from."""
    rng = np.random.default_rng(0)
    paper = rng.normal(PAPER, 4, (size, size)).clip(0, 255).astype("uint8")
    photographs = np.full((size, size), 128.0)
    for cell in (2, 8, 32):
        noise = rng.normal(0, 40, (size // cell, size // cell))
        photographs += np.kron(noise, np.ones((cell, cell)))
    return paper, photographs.clip(0, 255).astype("uint8")


def cut_out(texture, height, width, rng):
    top = rng.integers(len(texture) - height + 1)
    left = rng.integers(len(texture) - width + 1)
    return texture[top : top + height, left : left + width]


def page_shapes(num_patches):
    """The rows and columns of pages of at most so many patches."""
    least, most = (num_patches / 2) ** 0.5, (num_patches * 2) ** 0.5
    return [
        (rows, num_patches // rows // STEP * STEP)
        for rows in range(STEP, int(most) + 1, STEP)
        if rows >= least
    ]


def make_page(rng, num_patches, num_lines=MAX_LINES):
    """Makes a page.

    Args:
        rng: a NumPy generator.
        num_patches: int >= 64. The largest number of patches.
        num_lines: int from 1 to 4.

    Returns:
        A `Page`.
    """
    shapes = page_shapes(num_patches)
    rows, columns = shapes[rng.integers(len(shapes))]
    height, width = rows * PATCH_SIZE, columns * PATCH_SIZE
    paper, photographs = textures()
    image = cut_out(paper, height, width, rng).copy()
    for _ in range(rng.integers(4)):
        size = rng.integers(height // 8, height // 3), width // 4
        top, left = (
            rng.integers(whole - part + 1)
            for whole, part in zip((height, width), size)
        )
        image[top : top + size[0], left : left + size[1]] = cut_out(
            photographs, *size, rng
        )
    hints = {
        name: np.zeros((rows, columns), "int32") for name in ("words", "lines")
    }
    page = Page(image, [], [], hints)
    labels = rng.permutation(len(LABELS))[:num_lines]
    # As on a form: a line is as high as a patch, or a little less.
    for label, row in zip(labels, rng.permutation(rows)[:num_lines]):
        value = rng.integers(len(WORDS) - len(VALUES), len(WORDS))
        top = row * PATCH_SIZE + rng.integers(PATCH_SIZE - LINE_HEIGHT + 1)
        write_line(page, rng, [1 + label, value], top)
        page.labels.append(int(label))
        page.values.append(int(value))
    return page


def write_line(page, rng, words, top):
    """Writes label and value, positions in WORDS, and notes where."""
    drawn = [draw_word(WORDS[word]) for word in words]
    width = sum(ink.shape[1] for ink in drawn)
    room = page.image.shape[1] - width
    gap = rng.integers(6, min(room, 40) + 1)
    left = rng.integers(room - gap + 1)
    bottom = top + LINE_HEIGHT
    # Paper behind the line, where a photograph is.
    page.image[top:bottom, left : left + width + gap] = PAPER
    for word, ink in zip(words, drawn):
        right = left + ink.shape[1]
        page.image[top:bottom, left:right] = PAPER * (1 - 0.9 * ink)
        columns = slice(left // PATCH_SIZE, -(-right // PATCH_SIZE))
        page.hints["words"][top // PATCH_SIZE, columns] = word
        page.hints["lines"][top // PATCH_SIZE, columns] = words[1]
        left = right + gap


def shrink(page, factor):
    """A page of which each pixel is the mean of `factor` x `factor`."""
    if factor == 1:
        return page
    return page._replace(
        image=_tiles(page.image, factor).mean(axis=(1, 3)).astype("uint8"),
        hints={
            name: _tiles(hint, factor).max(axis=(1, 3))
            for name, hint in page.hints.items()
        },
    )


def _tiles(array, size):
    height, width = array.shape
    return array.reshape(height // size, size, width // size, size)


def cut_out_patches(image, places):
    """Patches of shape `(k, 256)` at `places`, a pair of rows and columns."""
    rows, columns = places
    patches = _tiles(image, PATCH_SIZE)[rows, :, columns]
    return patches.reshape(-1, PATCH_SIZE**2)


def choose_patches(page, num_shown, rule, rng):
    """The rows and columns of patches to keep, in the order of the page.

    Args:
        page: a `Page`.
        num_shown: optional int. How many. Defaults to all.
        rule: `"text"`, all that show lines, and others at random; `"random"`;
            or `"contrast"`, those whose pixels have the highest standard
            deviation.
        rng: a NumPy generator.
    """
    if rule == "contrast":
        scores = _tiles(page.image, PATCH_SIZE).std(axis=(1, 3))
    else:
        is_text = page.hints["words"] > 0
        scores = rng.random(is_text.shape, "float32")
        scores += (rule == "text") * is_text
    best = np.sort(np.argsort(-scores, axis=None)[:num_shown])
    return np.unravel_index(best, scores.shape)


def make_batch(
    rng,
    batch_size,
    num_patches,
    num_lines=MAX_LINES,
    num_questions=1,
    num_shown=None,
    rule="text",
    shrunk=1,
    hint="lines",
):
    """Makes pages, with questions and answers.

    Args:
        rng: a NumPy generator.
        batch_size: int. Number of pages.
        num_patches: int. The largest number of patches on a page.
        num_lines: int from 1 to 4. Lines on a page. Defaults to 4.
        num_questions: int. Questions asked about a page, at most `num_lines`.
            Defaults to 1.
        num_shown: optional int. Patches of a page that are kept. Defaults to
            all.
        rule: which are kept, see `choose_patches`.
        shrunk: 1, 2 or 4. What the sides of a page are divided by.
        hint: `"words"` or `"lines"`, of a `Page`.

    Returns:
        A tuple of a dict with the inputs of a `PageBackbone`, and a dict of
        `answers`, `(batch_size, num_questions)`, and `hints`, `(batch_size,
        n)`, as positions in WORDS.
    """
    length = num_shown or num_patches // shrunk**2
    inputs = {
        "question": np.zeros((batch_size, num_questions), "int32"),
        "patches": np.full((batch_size, length, PATCH_SIZE**2), PAPER, "uint8"),
        "rows": np.zeros((batch_size, length), "int32"),
        "columns": np.zeros((batch_size, length), "int32"),
        "padding_mask": np.zeros((batch_size, length), "bool"),
    }
    targets = {
        "answers": np.zeros((batch_size, num_questions), "int32"),
        "hints": np.zeros((batch_size, length), "int32"),
    }
    # Of its own, so that the pages are the same whatever is kept.
    choice_rng = rng.spawn(1)[0]
    for index in range(batch_size):
        page = shrink(make_page(rng, num_patches, num_lines), shrunk)
        # The order of the lines is random.
        inputs["question"][index] = page.labels[:num_questions]
        targets["answers"][index] = page.values[:num_questions]
        places = choose_patches(page, num_shown, rule, choice_rng)
        shown = index, slice(len(places[0]))
        inputs["patches"][shown] = cut_out_patches(page.image, places)
        inputs["rows"][shown], inputs["columns"][shown] = places
        inputs["padding_mask"][shown] = True
        targets["hints"][shown] = page.hints[hint][places]
    return inputs, targets


class PageBatches(keras.utils.PyDataset):
    """Pages that are new in every step and epoch.

    Args:
        num_batches: int.
        seed: int.
        to_batch: function of what `make_batch` returns that returns a batch
            for Keras. Defaults to that itself.
        **arguments: of `make_batch`.
    """

    def __init__(self, num_batches, seed, to_batch=None, **arguments):
        super().__init__(workers=8, max_queue_size=24)
        self.length, self.seed, self.epoch = num_batches, seed, 0
        self.to_batch = to_batch or (lambda *parts: parts)
        self.arguments = arguments
        # Before several threads want them.
        textures()

    def __len__(self):
        return self.length

    def on_epoch_end(self):
        self.epoch += 1

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return self.to_batch(*make_batch(rng, **self.arguments))
