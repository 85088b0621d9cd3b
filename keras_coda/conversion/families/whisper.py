"""Whisper: pre-LN blocks and decoder layers, with no bias on the keys."""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(
        backbone="WhisperBackbone",
        blocks="encoder_transformer_layers",
        decoder_blocks="decoder_transformer_layers",
    )
)
