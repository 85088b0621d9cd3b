"""Runs of a benchmark add to each other, and are in the dtype they tell."""

import importlib
import json
import pathlib

import keras
import pytest

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@same_on_every_backend
def test_a_run_replaces_what_asks_the_same(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    timing = importlib.import_module("timing")
    path = tmp_path / "speed.json"

    def write(*records):
        return timing.write_run(path, {"rounds": 3}, list(records), ("n",))

    write({"n": 1, "seconds": 0.5}, {"n": 2, "seconds": 1.5})
    write({"n": 3, "seconds": 2.5})
    table = write({"n": 2, "seconds": 9.5, "memory": 1}, {"n": 3, "seconds": 8})
    runs = json.loads(path.read_text())["timings"]
    assert [[r["n"] for r in run["records"]] for run in runs] == [[1], [2, 3]]
    assert all(run["rounds"] == 3 and run["versions"] for run in runs)
    assert table == path.with_suffix(".md").read_text()
    assert table.splitlines() == [
        "| run | n | seconds | memory |",
        "| --- | --- | --- | --- |",
        "| 1 | 1 | 0.50 |  |",
        "| 2 | 2 | 9.50 | 1 |",
        "| 2 | 3 | 8 |  |",
    ]


@same_on_every_backend
@pytest.mark.parametrize(
    "name, make, shape",
    [("inference", "run_shape", "bert-128"), ("prompts", "run", "qwen")],
)
def test_models_are_made_in_the_dtype_asked_for(
    tmp_path, monkeypatch, name, make, shape
):
    monkeypatch.syspath_prepend(BENCHMARKS)
    benchmark = importlib.import_module(name)
    dtypes = []

    def record(*arguments):
        dtypes.append(keras.config.dtype_policy().name)
        return [{"shape": shape, "n": 8}]

    monkeypatch.setattr(benchmark, make, record)
    monkeypatch.setattr(benchmark, "plot", lambda *_: None, raising=False)
    flags = ["--dtype", "mixed_bfloat16", "--shapes", shape]
    flags += ["--output", str(tmp_path)]
    monkeypatch.setattr("sys.argv", [f"{name}.py", *flags])
    try:
        benchmark.main()
    finally:
        keras.config.set_dtype_policy("float32")
    assert set(dtypes) == {"mixed_bfloat16"}
    (path,) = tmp_path.glob("*.json")
    assert "bfloat16" in path.name and "mixed_bfloat16" in path.read_text()
