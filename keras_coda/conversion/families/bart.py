"""BART: post-LN blocks and decoder layers, those of KerasHub itself."""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(
        backbone="BartBackbone",
        blocks="encoder_transformer_layers",
        decoder_blocks="decoder_transformer_layers",
    )
)
