"""The benchmark of Whisper: its rows, and encoders without layers."""

import pathlib
import sys

import keras
import keras_hub
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"

if keras.config.backend() != "torch":
    pytest.skip("the benchmark is for PyTorch", allow_module_level=True)

sys.path.insert(0, str(BENCHMARKS))
import whisper  # noqa: E402


def test_encoder_without_layers():
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=10,
        num_layers=2,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        num_mels=4,
        max_encoder_sequence_length=20,
        max_decoder_sequence_length=10,
    )
    for weight in backbone.weights:
        weight.assign(keras.random.normal(weight.shape))
    features = np.random.default_rng(0).normal(size=(3, 20, 4))
    whole, same, less = (
        keras.ops.convert_to_numpy(
            whisper.make_encoder(backbone, kept)(features.astype("float32"))
        )
        for kept in (None, (0, 1), (1,))
    )
    np.testing.assert_allclose(whole, same, rtol=1e-6)
    assert np.abs(whole - less).max() > 0.1


def test_rows():
    rows = whisper.make_rows([1.6], num_layers=2)
    assert rows["dense"] == whisper.Row()
    assert rows["CoDA, 1.6 times as fast, aligned"].is_aligned
    assert rows["without encoder layer 1"].kept == (1,)
    assert rows["dense, 20 seconds"].num_frames == 2000
