import os
import subprocess
import sys

import pytest

from tests.backend_helpers import BACKEND
from tests.examples import FOLDER

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="PyTorch's own way to use several devices"
)


def run_in_two_processes(script, *arguments):
    """Returns what a script prints."""
    root = FOLDER.parent
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [sys.executable, "-m", *launcher, str(root / script), *arguments],
        env={**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_two_processes_fit_what_one_does():
    output = run_in_two_processes("tests/examples/replicas.py")
    # Not in lines of their own: both write to one stream.
    assert "process 0 is done" in output
    assert "process 1 is done" in output


def test_script(preset, csv_path, tmp_path):
    adapter = tmp_path / "adapter.safetensors"
    output = run_in_two_processes(
        "examples/distributed_torch.py",
        *["--preset", preset, "--data", csv_path, "--epochs", "1"],
        *["--sequence-length", "8", "--output", str(adapter)],
    )
    assert output.count("2 processes, r=4: test accuracy") == 1
    assert adapter.exists()
