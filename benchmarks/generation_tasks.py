"""What a T5 writes from records of Debian's packages.

    apt-get -o Acquire::Languages=en update
    pip install python-debian

A record tells a package's section, who maintains it and four keywords of its
description, in sentences that are shuffled among pieces of this description.

- answering: what the section is, or who the maintainer.
- copying: the four keywords, from the first to the fourth.
- summarising: all that the record tells but three keywords, in one line.

The question comes first. No two packages begin alike, and each is of one split
alone. Records consist of the most common words; others are left out.
"""

import collections
import functools
import io
import random
import re
import subprocess
import sys
from typing import NamedTuple

import keras_hub
import sentencepiece

KINDS = ("copying", "answering", "summarising")
SEQUENCE_LENGTH, RESPONSE_LENGTH = 128, 12
VOCABULARY_SIZE = 2000
# Copying any of 1,900 words was not learned in 2,500 steps.
NUM_KEYWORDS = 100
NUM_WORDS, NUM_PIECES = 80, 3
ORDINALS = ("first", "second", "third", "fourth")
SENTENCES = (
    "it belongs to the section {section}",
    "it is looked after by {maintainer}",
    *(f"the {ordinal} keyword is {{{ordinal}}}" for ordinal in ORDINALS),
)
SUMMARY = "{first} in {section} by {maintainer}"
# Of the questions and sentences, which no description repeats.
OWN_WORDS = (
    *("copy", "summarise", "section", "maintainer", "keyword"),
    *("belongs", "looked", "after", *ORDINALS),
)
MAX_MAINTAINER_WORDS = 4
SPLIT_SIZES = {"validation": 2000, "test": 2000}


class Package(NamedTuple):
    """One of Debian's packages.

    Attributes:
        section: str, such as `"games"`.
        maintainer: str, a name.
        words: tuple of the words of the description.
        keywords: tuple of those of them that are keywords.
    """

    section: str
    maintainer: str
    words: tuple
    keywords: tuple = ()


def words_of(text):
    return re.findall(r"\w+", text.casefold())


@functools.cache
def read_packages():
    """All `Package`s that make a record, shuffled."""
    packages = {}
    for package in _all_packages():
        packages.setdefault(package.words[:6], package)
    counts = collections.Counter(
        word
        for package in packages.values()
        for word in (*package.words, *_fact_words(package))
    )
    common = [word for word, _ in counts.most_common(VOCABULARY_SIZE - 100)]
    keywords = [word for word in common if len(word) > 4][:NUM_KEYWORDS]
    common, keywords = set(common), set(keywords)
    told = []
    for package in packages.values():
        words = tuple(
            word
            for word in package.words
            if word in common and word not in OWN_WORDS
        )
        words = words[:NUM_WORDS]
        found = tuple(sorted(keywords.intersection(words)))
        known = common.issuperset(_fact_words(package))
        if known and len(found) >= len(ORDINALS):
            told.append(package._replace(words=words, keywords=found))
    random.Random(0).shuffle(told)
    return tuple(told)


def _fact_words(package):
    return words_of(f"{package.section} {package.maintainer}")


def packages_of(split):
    """The packages of a split."""
    packages, start = read_packages(), 0
    for name, size in SPLIT_SIZES.items():
        if name == split:
            return packages[start : start + size]
        start += size
    return packages[start:]


def _all_packages():
    descriptions = {
        item["Package"]: item["Description-en"]
        for item in _read_index("Translations")
        if "Description-en" in item
    }
    for item in _read_index("Packages"):
        maintainer = words_of(item["Maintainer"].partition(" <")[0])
        if (
            item["Package"] in descriptions
            and 0 < len(maintainer) <= MAX_MAINTAINER_WORDS
        ):
            yield Package(
                " ".join(words_of(item["Section"])),
                " ".join(maintainer),
                tuple(words_of(descriptions[item["Package"]])),
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
    texts, targets = [], []
    for package in draw.choices(packages_of(split), k=size):
        keywords = draw.sample(package.keywords, len(ORDINALS))
        told = {
            "section": package.section,
            "maintainer": package.maintainer,
            **dict(zip(ORDINALS, keywords)),
        }
        question, target = {
            "copying": ("copy", " ".join(keywords)),
            "answering": draw.choice(list(told.items())[:2]),
            "summarising": ("summarise", SUMMARY.format(**told)),
        }[kind]
        sentences = [sentence.format(**told) for sentence in SENTENCES]
        sentences += _pieces(package.words, draw)
        draw.shuffle(sentences)
        texts.append(" ".join([question, *sentences]))
        targets.append(target)
    return texts, targets


def _pieces(words, draw):
    """A text in several parts."""
    cuts = sorted(draw.choices(range(len(words) + 1), k=NUM_PIECES - 1))
    return [
        " ".join(words[start:stop])
        for start, stop in zip([0, *cuts], [*cuts, len(words)])
    ]


def make_mixture(split, size, seed=0):
    """As many examples of each kind, one kind after the other."""
    parts = [make_examples(k, split, size // len(KINDS), seed) for k in KINDS]
    return tuple([x for part in column for x in part] for column in zip(*parts))


@functools.cache
def make_preprocessor(sequence_length=SEQUENCE_LENGTH):
    """T5's, with the words of the training split as its tokens."""
    return keras_hub.models.T5Seq2SeqLMPreprocessor(
        _make_tokenizer(),
        encoder_sequence_length=sequence_length,
        decoder_sequence_length=RESPONSE_LENGTH,
    )


@functools.cache
def _make_tokenizer():
    proto = io.BytesIO()
    texts, targets = make_mixture("train", 30000)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + targets),
        model_writer=proto,
        model_type="word",
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return keras_hub.models.T5Tokenizer(proto.getvalue())
