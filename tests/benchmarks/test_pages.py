"""The benchmark of pages runs, and goes on where it was."""

import json
import pathlib
import subprocess
import sys

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"
ROWS = ["dense", "r4", "shrunk2", "contrast4", "k_to_k4_aligned"]

pytestmark = same_on_every_backend


def run(folder, *arguments):
    subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "pages.py",
            "--quick",
            "--output",
            folder,
            *arguments,
        ],
        check=True,
    )
    return json.loads((folder / "pages-quick.json").read_text())


def test_quick(tmp_path):
    results = run(tmp_path)
    assert set(results["runs"]) == {f"{row}/0" for row in ROWS}
    assert all(0 <= run["test"] <= 1 for run in results["runs"].values())
    assert set(results["speedups"]) == {
        "dense/1",
        "dense/4",
        "k_to_all/4",
        "k_to_k/4",
    }
    table = (tmp_path / "pages-quick.md").read_text()
    assert len(table.splitlines()) == 2 + len(ROWS)
    assert (tmp_path / "pages-quick.png").stat().st_size > 0
    assert (tmp_path / "pages-quick-routed.png").stat().st_size > 0
