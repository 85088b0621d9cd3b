"""EdRec: pre-LN blocks with attention without biases."""

from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(
        backbone="EdRecBackbone",
        parts=Parts(
            attention="attention",
            attention_norm="pre_attention_norm",
            after_attention={"attention_dropout": "dropout1"},
            feedforward_norm="pre_ffw_norm",
            feedforward={"feedforward": "mlp"},
        ),
        blocks="encoder_layers",
        decoder_blocks="decoder_layers",
    )
)
