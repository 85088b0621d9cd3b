import keras_hub
import numpy as np

from tests.conversion.models import t5_inputs
from tests.conversion.tiny import TinyModel

MOONSHINE = {
    "vocabulary_size": 50,
    "filter_dim": 16,
    "encoder_num_layers": 2,
    "decoder_num_layers": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "encoder_num_heads": 2,
    "decoder_num_heads": 2,
    "feedforward_expansion_factor": 2,
}


def num_samples(length):
    """Of which the three convolutions make `length` rows."""
    for kernel_size, stride in [(3, 2), (7, 3), (127, 64)]:
        length = stride * (length - 1) + kernel_size
    return length


def inputs(length=12):
    inputs = t5_inputs()
    audio = np.random.default_rng(0).normal(size=(3, num_samples(length), 1))
    real = np.array([[num_samples(n)] for n in (length, 7, length)])
    return {
        "encoder_input_values": audio.astype("float32"),
        "encoder_padding_mask": np.arange(num_samples(length)) < real,
        "decoder_token_ids": inputs["decoder_token_ids"],
        "decoder_padding_mask": inputs["decoder_padding_mask"].astype(bool),
    }


MODELS = [
    TinyModel(
        "MoonshineBackbone",
        MOONSHINE,
        inputs,
        lambda backbone: [
            (keras_hub.models.MoonshineAudioToText(backbone), inputs())
        ],
        # KerasHub's takes no mixed dtype as an argument, and under a global
        # policy TensorFlow refuses to add its bfloat16 to its float32.
        fit_dtype="float32",
        # No `real`: KerasHub normalises the audio, padding and all, before it
        # gets to the encoder.
    )
]
