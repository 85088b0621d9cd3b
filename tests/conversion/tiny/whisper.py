import numpy as np

from tests.conversion.models import t5_inputs
from tests.conversion.tiny import TinyModel

WHISPER = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_mels": 8,
    "max_encoder_sequence_length": 64,
    "max_decoder_sequence_length": 16,
}


def inputs(length=12):
    """The encoder has no padding mask: Whisper hears the silence too."""
    features = np.random.default_rng(0).normal(size=(3, 2 * length, 8))
    inputs = t5_inputs()
    return {
        "encoder_features": features.astype("float32"),
        "decoder_token_ids": inputs["decoder_token_ids"],
        "decoder_padding_mask": inputs["decoder_padding_mask"],
    }


MODELS = [TinyModel("WhisperBackbone", WHISPER, inputs)]
