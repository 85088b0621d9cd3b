"""What a T5 writes from descriptions of Debian's packages.

    apt-get -o Acquire::Languages=en update
    pip install python-debian

- copying: of three packages, the first words of the description of one.
- answering: of three packages, in which section one is, or who maintains it.
- summarising: of the description of one, its synopsis, which its maintainer
  wrote in one line.

No two packages have the same synopsis or begin of the description, and each is
of one split alone. Text is compared as `normalize` leaves it.
"""

import functools
import io
import random
import subprocess
import sys
from typing import NamedTuple

import keras_hub
import sentencepiece

KINDS = ("copying", "answering", "summarising")
SEQUENCE_LENGTH, RESPONSE_LENGTH = 128, 20
VOCABULARY_SIZE = 4000
NUM_TOGETHER, NUM_WORDS, NUM_COPIED = 3, 14, 6
SPLIT_SIZES = {"validation": 2000, "test": 2000}


class Package(NamedTuple):
    """One of Debian's packages.

    Attributes:
        section: str, such as `"games"`.
        maintainer: str, a name.
        synopsis: str, the first line of the description.
        words: tuple of the words of what follows.
    """

    name: str
    section: str
    maintainer: str
    synopsis: str
    words: tuple


def normalize(text):
    return " ".join(text.casefold().split())


@functools.cache
def read_packages(split):
    """A tuple of the `Package`s of a split."""
    packages = {}
    for package in _all_packages():
        beginning = " ".join(package.words[:NUM_COPIED])
        if len(package.words) >= NUM_WORDS:
            packages.setdefault(beginning, package)
    packages = list({p.synopsis: p for p in packages.values()}.values())
    random.Random(0).shuffle(packages)
    start = 0
    for name, size in SPLIT_SIZES.items():
        if name == split:
            return tuple(packages[start : start + size])
        start += size
    return tuple(packages[start:])


def _all_packages():
    descriptions = {
        item["Package"]: item["Description-en"]
        for item in _read_index("Translations")
        if "Description-en" in item
    }
    for item in _read_index("Packages"):
        name = item["Package"]
        if name in descriptions:
            synopsis, _, rest = descriptions[name].partition("\n")
            yield Package(
                name,
                item["Section"],
                normalize(item["Maintainer"].partition(" <")[0]),
                normalize(synopsis),
                tuple(normalize(rest.replace("\n .\n", "\n")).split()),
            )


def _read_index(kind):
    """The paragraphs of apt's index files of a kind."""
    from debian import deb822

    apt = ["apt-get", "-o", "Acquire::Languages=en", "indextargets"]
    apt += ["--format", "$(FILENAME)", f"Created-By: {kind}"]
    files = subprocess.run(apt, capture_output=True, text=True, check=True)
    if not files.stdout:
        sys.exit(
            f"error: apt has no {kind}. This needs Debian; run `apt-get -o "
            "Acquire::Languages=en update`."
        )
    content = subprocess.run(
        ["/usr/lib/apt/apt-helper", "cat-file", *files.stdout.split()],
        capture_output=True,
        text=True,
        check=True,
    )
    return deb822.Deb822.iter_paragraphs(
        io.StringIO(content.stdout), use_apt_pkg=False
    )


def make_examples(kind, split, size, seed=0):
    """Lists of texts, and of what is to be written about each."""
    draw = random.Random(f"{kind} {split} {seed}")
    packages = read_packages(split)
    if kind == "summarising":
        chosen = draw.choices(packages, k=size)
        return (
            [f"summarise : {' '.join(package.words)}" for package in chosen],
            [package.synopsis for package in chosen],
        )
    named = _with_simple_names(split)
    texts, targets = [], []
    for _ in range(size):
        together = draw.sample(named, NUM_TOGETHER)
        asked = draw.choice(together)
        if kind == "copying":
            question, answer = "copy", " ".join(asked.words[:NUM_COPIED])
        elif draw.random() < 0.5:
            question, answer = "section of", asked.section
        else:
            question, answer = "maintainer of", asked.maintainer
        document = " ; ".join(map(_describe, together))
        texts.append(f"{question} {asked.name} : {document}")
        targets.append(answer)
    return texts, targets


@functools.cache
def _with_simple_names(split):
    return [
        package
        for package in read_packages(split)
        if package.name.isalpha() and len(package.name) <= 10
    ]


def _describe(package):
    words = " ".join(package.words[:NUM_WORDS])
    return (
        f"{package.name} in {package.section} by {package.maintainer} : {words}"
    )


def make_mixture(split, size, seed=0):
    """As many examples of each kind, one kind after the other."""
    parts = [make_examples(k, split, size // len(KINDS), seed) for k in KINDS]
    return tuple([x for part in column for x in part] for column in zip(*parts))


@functools.cache
def make_preprocessor(sequence_length=SEQUENCE_LENGTH):
    """T5's, with a vocabulary of the training split."""
    return keras_hub.models.T5Seq2SeqLMPreprocessor(
        _make_tokenizer(),
        encoder_sequence_length=sequence_length,
        decoder_sequence_length=RESPONSE_LENGTH,
    )


@functools.cache
def _make_tokenizer():
    proto = io.BytesIO()
    texts, _ = make_mixture("train", 30000)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=proto,
        vocab_size=VOCABULARY_SIZE,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        byte_fallback=True,
        minloglevel=2,
    )
    return keras_hub.models.T5Tokenizer(proto.getvalue())
