"""The benchmark of CTC runs, spells and counts errors."""

import importlib
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.backend_helpers import same_on_every_backend

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

pytestmark = same_on_every_backend


@pytest.fixture(scope="module")
def ctc_speech():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("ctc_speech")


def test_error_rates(ctc_speech):
    references = ["the cat sat on the mat", "a dog", "yes"]
    texts = ["the bat sat on mat", "", "no yes"]
    characters = ctc_speech.error_rate(references, texts)
    assert characters == (1 + 4 + 5 + 3) / 30
    words = [[text.split() for text in list] for list in (references, texts)]
    assert ctc_speech.error_rate(*words) == (2 + 2 + 1) / 9


def test_spells_what_the_labels_say(ctc_speech, tmp_path):
    frames = np.arange(26)[:, None].repeat(40, axis=1).astype("uint8") % 22
    np.savez(
        tmp_path / "speech.npz",
        test_texts=np.array(["a cab", "bee"]),
        test_lengths=np.array([6, 20]),
        test_frames=frames,
    )
    speech = ctc_speech.Speech(tmp_path / "speech.npz", "test")
    labels = ctc_speech.make_labels(speech)
    assert labels[:, :2].tolist() == [[2, 5], [5, 3]]
    # Enough outputs for all characters, and a blank between two that are same.
    labels[:, 0] = 6
    path = np.zeros((2, 8), "int64")
    path[0, :5] = labels[0, 2:]
    path[1, :4] = [*labels[1, 2:4], 0, labels[1, 4]]
    # Padding spells nothing.
    path[:, 6:] = 1
    logits = 30 * np.eye(28, dtype="float32")[path]
    assert ctc_speech.spell(logits, labels) == speech.texts
    losses = ctc_speech.ctc_loss(labels, logits)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(losses), 0, atol=1e-3)


@pytest.mark.skipif(
    shutil.which("espeak-ng") is None
    or importlib.util.find_spec("orangecontrib") is None,
    reason="needs espeak-ng and examples/requirements.txt",
)
def test_quick(tmp_path):
    subprocess.run(
        [
            sys.executable,
            BENCHMARKS / "speech_ctc.py",
            "--quick",
            "--output",
            tmp_path,
        ],
        check=True,
    )
    results = json.loads((tmp_path / "speech_ctc-quick.json").read_text())
    rows = ("frozen", "dense", "r4_pretrained", "speedup_aligned", "half_rate")
    assert set(results["runs"]) == {f"{row}/0" for row in rows}
    assert all(speed > 0 for speed in results["speedups"].values())
