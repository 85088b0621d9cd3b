"""What a T5 is asked to write stands in its text, and splits are apart."""

import importlib
import pathlib

import pytest

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
LETTERS = "abcdefghij"

pytestmark = same_on_every_backend


def read_index(kind):
    """As many packages as three splits need, in apt's words."""
    for number in range(60):
        name = "".join(LETTERS[int(digit)] for digit in f"{number:03}")
        words = " ".join(f"{name}{index}" for index in range(30))
        yield {
            "Package": name,
            "Section": f"section{number % 7}",
            "Maintainer": f"Team {name} <{name}@example.org>",
            "Description-en": f"What {name} is\n {words}\n .\n The end.",
        }
    # A copy of one that is there.
    yield {
        "Package": "copy",
        "Section": "oldlibs",
        "Maintainer": "Nobody",
        "Description-en": f"What {name} is\n {words}\n",
    }


@pytest.fixture
def tasks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    tasks = importlib.import_module("generation_tasks")
    monkeypatch.setattr(tasks, "_read_index", read_index)
    monkeypatch.setattr(tasks, "SPLIT_SIZES", {"validation": 10, "test": 10})
    functions = (tasks.read_packages, tasks._with_simple_names)
    for function in functions:
        function.cache_clear()
    yield tasks
    for function in functions:
        function.cache_clear()


def test_splits_are_apart(tasks):
    splits = [tasks.read_packages(s) for s in ("train", "validation", "test")]
    assert [len(packages) for packages in splits] == [40, 10, 10]
    assert len({p.synopsis for packages in splits for p in packages}) == 60


@pytest.mark.parametrize("kind", ["copying", "answering"])
def test_the_answer_stands_in_the_text(tasks, kind):
    texts, answers = tasks.make_examples(kind, "test", 20)
    for text, answer in zip(texts, answers):
        question, _, document = text.partition(" : ")
        name = question.split()[-1]
        (asked,) = (
            part for part in document.split(" ; ") if part.startswith(name)
        )
        place = {
            "copy": asked.partition(" : ")[2],
            "section": asked.partition(" in ")[2],
            "maintainer": asked.partition(" by ")[2],
        }[question.split()[0]]
        assert place.startswith(answer)


def test_a_summary_is_what_the_maintainer_wrote(tasks):
    texts, summaries = tasks.make_examples("summarising", "test", 5)
    for text, summary in zip(texts, summaries):
        name = summary.split()[1]
        assert text.startswith(f"summarise : {name}0 {name}1")
        assert text.endswith(f"{name}29 the end.")
        assert summary == f"what {name} is"


def test_other_seeds_draw_other_examples(tasks):
    kind = "copying"
    first = tasks.make_examples(kind, "train", 5)
    assert tasks.make_examples(kind, "train", 5) == first
    assert tasks.make_examples(kind, "train", 5, seed=1) != first
    assert len(tasks.make_mixture("train", 30)[0]) == 30
