import os
import subprocess
import sys

import keras
import pytest

from tests.backend_helpers import same_on_every_backend
from tests.conversion import cross_backend

# A ring, so that each writes and each reads.
NEXT = {"tensorflow": "jax", "jax": "torch", "torch": "tensorflow"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    cross_backend.write(folder)
    return folder


@same_on_every_backend
def test_files_of_this_backend(folder):
    cross_backend.read(folder)


def test_files_move_to_another_backend(folder):
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.conversion.cross_backend",
            "read",
            str(folder),
        ],
        env={**os.environ, "KERAS_BACKEND": NEXT[keras.config.backend()]},
        capture_output=True,
        text=True,
    )
    assert result.stdout.endswith("done\n"), result.stderr[-3000:]
