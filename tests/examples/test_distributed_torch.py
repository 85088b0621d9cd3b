import os
import subprocess
import sys

import pytest

from tests.backend_helpers import BACKEND
from tests.examples import FOLDER

pytestmark = pytest.mark.skipif(
    BACKEND != "torch", reason="PyTorch's own way to use several devices"
)


def test_two_processes_fit_what_one_does(preset, csv_path, tmp_path):
    root = FOLDER.parent
    adapter = tmp_path / "adapter.safetensors"
    result = subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone"],
            *["--nproc-per-node=2", str(root / "tests/examples/replicas.py")],
            *["--preset", preset, "--data", csv_path, "--epochs", "1"],
            *["--sequence-length", "8", "--output", str(adapter)],
        ],
        env={**os.environ, "PYTHONPATH": f"{FOLDER}{os.pathsep}{root}"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    # Not in lines of their own: both write to one stream.
    assert "process 0 is done" in result.stdout
    assert "process 1 is done" in result.stdout
    assert result.stdout.count("2 processes, r=4: test accuracy") == 1
    assert adapter.exists()
