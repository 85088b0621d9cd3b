"""Speech of a synthesiser, and a plain Transformer that spells it.

`espeak-ng`, a Debian package, reads parts of sentences of Reuters R8 with
voices of two groups: American ones, and others that a model has yet to adapt
to. What it reads is kept in a file, so that a benchmark also runs where neither
espeak-ng nor Reuters is.
"""

import collections
import itertools
import pathlib
import random
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import keras
import keras_hub
import numpy as np
import speech_data
import text_data
from keras import ops

from keras_coda.conversion import Family
from keras_coda.conversion import register_family

KNOWN_VOICES = ("en-us", "en-us+m1", "en-us+m7", "en-us+f2")
NEW_VOICES = ("en-gb", "en-gb-x-rp+f3", "en-gb-scotland+m3", "en-029+m5")
WORDS_PER_MINUTE = (120, 140, 160)
# From part to the voices and the documents.
PARTS = {
    "known": (KNOWN_VOICES, "train"),
    "train": (NEW_VOICES, "train"),
    "validation": (NEW_VOICES, "validation"),
    "test": (NEW_VOICES, "test"),
}
NUM_WORDS = (4, 6)
VOCABULARY_SIZE = 600

SAMPLING_RATE = 22050
HOP, WINDOW, FFT_LENGTH = 220, 551, 1024
NUM_MELS = 40
# Whole tokens, also at half the frame rate.
MAX_FRAMES = 304
# What features are kept as: steps of 3 dB, down to 63 dB below the loudest.
NUM_LEVELS, DECIBELS = 22, 3.0

# The blank of CTC is 0.
CHARACTERS = " abcdefghijklmnopqrstuvwxyz"
NUM_STACKED = 4


# === Sentences ===


def make_texts(part, size):
    """Runs of common words, no run twice, each from a document of its own.

    Validation and test parts have documents of their own.
    """
    data = text_data.read_reuters()
    counts = collections.Counter(
        word for text in data.train_texts for word in text.split()
    )
    is_spoken = re.compile("a|[a-z]*[aeiouy][a-z]+|[a-z]+[aeiouy]").fullmatch
    common = [word for word in counts if word != "reuter"]
    common = sorted(filter(is_spoken, common), key=lambda w: (-counts[w], w))
    common = set(common[:VOCABULARY_SIZE])
    train = list(dict.fromkeys(data.train_texts))
    documents = {
        "train": [text for i, text in enumerate(train) if i % 8],
        "validation": train[::8],
        "test": list(dict.fromkeys(data.test_texts)),
    }[part]
    generator = random.Random(part)
    texts = {}
    while len(texts) < size:
        num_before = len(texts)
        generator.shuffle(documents)
        for document in documents:
            words = document.split()
            length = generator.randint(*NUM_WORDS)
            runs = [
                words[start : start + length]
                for start in range(len(words) - length + 1)
            ]
            runs = [run for run in runs if common.issuperset(run)]
            if runs:
                texts[" ".join(generator.choice(runs))] = None
            if len(texts) == size:
                break
        if len(texts) == num_before:
            raise ValueError(f"There are {len(texts)} texts. Received: {size=}")
    return list(texts)


# === Sound ===


def speak(text, voice, words_per_minute):
    """Samples in [-1, 1], 22,050 a second, without the silence around."""
    samples, rate = speech_data.synthesize(text, voice, words_per_minute)
    assert rate == SAMPLING_RATE
    loud = np.flatnonzero(np.abs(samples) > 100 / 2**15)
    return samples[loud[0] : loud[-1] + 1].astype("float32")


def log_mels(samples):
    """Frames of 10 ms in steps of 3 dB, uint8 of shape `(n, 40)`."""
    num_frames = 1 + max(len(samples) - WINDOW, 0) // HOP
    starts = HOP * np.arange(num_frames)[:, None]
    windows = samples[starts + np.arange(WINDOW)] * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(windows, FFT_LENGTH)) ** 2
    decibels = 10 * np.log10(power @ mel_filters() + 1e-10)
    levels = (decibels - decibels.max()) / DECIBELS + NUM_LEVELS - 1
    return np.clip(np.round(levels), 0, NUM_LEVELS - 1).astype("uint8")


def mel_filters():
    """Triangles from 60 Hz to 8 kHz, of shape `(bins, 40)`."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (60, 8000))
    mels = np.linspace(low, high, NUM_MELS + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)
    bins = np.fft.rfftfreq(FFT_LENGTH, 1 / SAMPLING_RATE)[:, None]
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins - left) / (middle - left)
    falling = (right - bins) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling))


# === Files ===


def make_file(path, sizes):
    """Writes features and texts of all parts; `sizes` is a dict."""
    train = iter(make_texts("train", sizes["known"] + sizes["train"]))
    arrays = {}
    for part, (voices, documents) in PARTS.items():
        texts = (
            [next(train) for _ in range(sizes[part])]
            if documents == "train"
            else make_texts(documents, sizes[part])
        )
        features = []
        for index, text in enumerate(texts):
            voice = voices[index % len(voices)]
            speed = WORDS_PER_MINUTE[index // len(voices) % 3]
            features.append(log_mels(speak(text, voice, speed)))
        arrays[f"{part}_texts"] = np.array(texts)
        arrays[f"{part}_lengths"] = np.array([len(x) for x in features])
        arrays[f"{part}_frames"] = np.concatenate(features)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


class Speech:
    """A part of a file; what is longer than three seconds is left out.

    Args:
        path: of a file of `make_file`.
        part: a key of PARTS.
        size: optional int. How many of its utterances.

    Attributes:
        texts: list of str.
        features: list of float32 arrays of shape `(frames, 40)`, of about mean
            0 and deviation 1.
    """

    def __init__(self, path, part, size=None):
        with np.load(path) as file:
            self.texts = list(map(str, file[f"{part}_texts"]))
            lengths = file[f"{part}_lengths"]
            frames = file[f"{part}_frames"].astype("float32")
        frames = (frames - NUM_LEVELS / 2) / (NUM_LEVELS / 4)
        self.features = np.split(frames, np.cumsum(lengths)[:-1])
        is_short = lengths <= MAX_FRAMES
        self.texts = list(itertools.compress(self.texts, is_short))[:size]
        self.features = list(itertools.compress(self.features, is_short))[:size]


def pad(features):
    """Inputs of a `SpeechBackbone`, three seconds long."""
    frames = np.zeros((len(features), MAX_FRAMES, NUM_MELS), "float32")
    mask = np.zeros((len(features), MAX_FRAMES), "int32")
    for row, values in enumerate(features):
        frames[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return {"frames": frames, "padding_mask": mask}


# === Model ===


@keras.saving.register_keras_serializable(package="keras_coda_benchmarks")
class SpeechBackbone(keras_hub.models.Backbone):
    """A plain pre-LN Transformer encoder over stacked frames.

    Args:
        num_layers, num_heads, hidden_dim: of the Transformer.
        num_stacked: int. Frames in a token.
        pooling: int. How many neighbouring tokens are averaged before the
            blocks.
        num_features: int. Numbers in a frame.
        max_length: int. Tokens that have positions.
    """

    def __init__(
        self,
        num_layers=4,
        num_heads=4,
        hidden_dim=144,
        num_stacked=NUM_STACKED,
        pooling=1,
        num_features=NUM_MELS,
        max_length=128,
        dtype=None,
        **kwargs,
    ):
        frames = keras.Input((None, num_features), name="frames")
        padding_mask = keras.Input((None,), dtype="int32", name="padding_mask")
        x = keras.layers.Conv1D(
            hidden_dim,
            2 * num_stacked + 1,
            strides=num_stacked,
            padding="same",
            activation="gelu",
            dtype=dtype,
            name="subsampling",
        )(frames)
        x = keras.layers.Dense(hidden_dim, dtype=dtype, name="projection")(x)
        x = x + keras_hub.layers.PositionEmbedding(
            max_length, dtype=dtype, name="position_embedding"
        )(x)
        if pooling > 1:
            x = keras.layers.AveragePooling1D(
                pooling, dtype=dtype, name="pooling"
            )(x)
        # A token is real if its first frame is.
        token_mask = padding_mask[:, :: num_stacked * pooling]
        self.transformer_layers = [
            keras_hub.layers.TransformerEncoder(
                4 * hidden_dim,
                num_heads,
                dropout=0.1,
                activation="gelu",
                normalize_first=True,
                dtype=dtype,
                name=f"transformer_layer_{index}",
            )
            for index in range(num_layers)
        ]
        for layer in self.transformer_layers:
            x = layer(x, padding_mask=token_mask)
        x = keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=dtype, name="final_norm"
        )(x)
        super().__init__(
            {"frames": frames, "padding_mask": padding_mask},
            x,
            dtype=dtype,
            name=kwargs.pop("name", "speech_backbone"),
            **kwargs,
        )
        self.num_layers = num_layers
        self.num_heads = num_heads
        self.hidden_dim = hidden_dim
        self.num_stacked = num_stacked
        self.pooling = pooling
        self.num_features = num_features
        self.max_length = max_length

    def get_config(self):
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "hidden_dim": self.hidden_dim,
            "num_stacked": self.num_stacked,
            "pooling": self.pooling,
            "num_features": self.num_features,
            "max_length": self.max_length,
        }


register_family(Family(backbone=SpeechBackbone))


def make_speller(backbone):
    """A model around a backbone: logits of characters for each token.

    If the backbone pools tokens, each writes as many characters as it was
    made of, so that there is room for them.
    """
    outputs = backbone(backbone.input)
    outputs = keras.layers.Dense(
        backbone.pooling * (1 + len(CHARACTERS)), dtype="float32", name="head"
    )(outputs)
    outputs = keras.layers.Reshape((-1, 1 + len(CHARACTERS)))(outputs)
    return keras.Model(backbone.input, outputs)


# === CTC ===


def make_labels(speech, pooling=1):
    """Numbers of outputs and of characters, then the characters, padded."""
    num_stacked = NUM_STACKED * pooling
    width = max(map(len, speech.texts))
    labels = np.zeros((len(speech.texts), 2 + width), "int32")
    for row, text in enumerate(speech.texts):
        num_tokens = -(-len(speech.features[row]) // num_stacked)
        labels[row, :2] = num_tokens * pooling, len(text)
        labels[row, 2 : 2 + len(text)] = [
            1 + CHARACTERS.index(character) for character in text
        ]
    return labels


def ctc_loss(labels, logits):
    """CTC on what is no padding, per character, of labels of `make_labels`."""
    labels = ops.cast(labels, "int32")
    losses = ops.ctc_loss(
        labels[:, 2:], ops.cast(logits, "float32"), labels[:, 1], labels[:, 0]
    )
    return losses / ops.cast(labels[:, 1], "float32")


def spell(logits, labels):
    """The best path: its texts without repetitions and blanks."""
    texts = []
    for row, (num_outputs, *_) in zip(logits.argmax(axis=-1), labels):
        row = row[:num_outputs]
        changes = np.flatnonzero(np.diff(row, prepend=0))
        texts.append("".join(CHARACTERS[i - 1] for i in row[changes] if i))
    return [" ".join(text.split()) for text in texts]


def error_rate(references, texts):
    """Edits per word, or per character of strings, as jiwer counts them."""
    edits = sum(map(edit_distance, references, texts))
    return edits / sum(map(len, references))


def edit_distance(reference, text):
    row = list(range(len(text) + 1))
    for number, expected in enumerate(reference, start=1):
        previous, row = row, [number]
        for index, found in enumerate(text):
            row.append(
                min(
                    previous[index] + (expected != found),
                    previous[index + 1] + 1,
                    row[index] + 1,
                )
            )
    return row[-1]
