import os
import subprocess
import sys

import keras
import pytest

from tests.conversion import cross_backend

OTHER_BACKENDS = {
    "tensorflow": ("jax", "torch"),
    "jax": ("torch", "tensorflow"),
    "torch": ("tensorflow", "jax"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    cross_backend.write(folder)
    return folder


def test_files_of_this_backend(folder):
    cross_backend.read(folder)


@pytest.mark.parametrize("which", [0, 1])
def test_files_move_to_another_backend(folder, which):
    backend = OTHER_BACKENDS[keras.config.backend()][which]
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.conversion.cross_backend",
            "read",
            str(folder),
        ],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
    )
    assert result.stdout.endswith("done\n"), result.stderr[-3000:]
