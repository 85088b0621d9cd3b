"""What a T5 is asked to write stands in its text, and splits are apart."""

import importlib
import pathlib
import re

import numpy as np
import pytest

from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import t5_backbone

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
LETTERS = "abcdefghij"

pytestmark = same_on_every_backend


def read_index(kind):
    """As many packages as three splits need, in apt's words."""
    for number in range(60):
        name = "".join(LETTERS[int(digit)] for digit in f"{number:03}")
        words = f"{name}0 apples pears plums grapes {name}1 lemons {name}2"
        yield {
            "Package": name,
            "Section": f"section{number % 7}",
            "Maintainer": f"Team {name} <{name}@example.org>",
            "Description-en": f"What {name} is\n {words}\n .\n The end.",
        }
    # A copy of one that is there, and one whose maintainer is a long story.
    yield {
        "Package": "copy",
        "Section": "oldlibs",
        "Maintainer": "Nobody",
        "Description-en": f"What {name} is\n {words}\n",
    }
    yield {
        "Package": "other",
        "Section": "oldlibs",
        "Maintainer": "Whoever comes by and has time",
        "Description-en": "Something else altogether, for everyone",
    }


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    tasks = importlib.import_module("generation_tasks")
    monkeypatch.setattr(tasks, "_read_index", read_index)
    monkeypatch.setattr(tasks, "SPLIT_SIZES", {"validation": 10, "test": 10})
    tasks.read_packages.cache_clear()
    yield tasks
    tasks.read_packages.cache_clear()


def test_splits_are_apart(tasks):
    splits = [
        tasks.packages_of(split) for split in ("train", "validation", "test")
    ]
    assert [len(packages) for packages in splits] == [40, 10, 10]
    assert len({p.maintainer for packages in splits for p in packages}) == 60


def told(text):
    """What a record tells, from its words."""
    found = dict(re.findall(r"the (\w+) keyword is (\w+)", text))
    found["section"] = re.search(r"belongs to the section (\w+)", text)[1]
    found["maintainer"] = re.search(r"looked after by (\w+ \w+)", text)[1]
    return found


def test_what_is_asked_for_stands_in_the_text(tasks):
    ordinals = ("first", "second", "third", "fourth")
    for text, target in zip(*tasks.make_examples("copying", "test", 20)):
        assert text.startswith("copy ")
        assert target == " ".join(told(text)[ordinal] for ordinal in ordinals)
    for text, target in zip(*tasks.make_examples("answering", "test", 20)):
        assert target == told(text)[text.split()[0]]
    for text, target in zip(*tasks.make_examples("summarising", "test", 20)):
        assert text.startswith("summarise ")
        assert target == "{first} in {section} by {maintainer}".format(
            **told(text)
        )


def test_a_record_repeats_no_word_of_its_sentences(tasks, monkeypatch):
    text = "the first keyword belongs to nobody apples pears plums"
    package = tasks.Package("games", "somebody", tuple(text.split()))
    monkeypatch.setattr(tasks, "_all_packages", lambda: [package])
    (package,) = tasks.read_packages()
    assert package.words == ("the", "to", "nobody", "apples", "pears", "plums")
    assert package.keywords == ("apples", "nobody", "pears", "plums")


def test_other_seeds_draw_other_examples(tasks):
    kind = "copying"
    first = tasks.make_examples(kind, "train", 5)
    assert tasks.make_examples(kind, "train", 5) == first
    assert tasks.make_examples(kind, "train", 5, seed=1) != first
    assert len(tasks.make_mixture("train", 30)[0]) == 30


def test_both_position_biases_of_a_t5_are_kept(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    bookkeeping = importlib.import_module("bookkeeping")
    trained, other = t5_backbone(seed=1), t5_backbone(seed=2)
    path = tmp_path / "t5.npz"
    bookkeeping.keep(path, bookkeeping.all_weights(trained), dict)
    bookkeeping.load(bookkeeping.all_weights(other), path)
    for kept, weight in zip(other.get_weights(), trained.get_weights()):
        np.testing.assert_array_equal(kept, weight)
