import keras_hub

from tests.conversion.models import t5_inputs
from tests.conversion.tiny import TinyModel

EDREC = {
    "vocab_size": 50,
    "num_layers_enc": 2,
    "num_layers_dec": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "num_heads": 2,
}


def inputs(length=12):
    return {
        key: value.astype(bool) if key.endswith("mask") else value
        for key, value in t5_inputs(length).items()
    }


MODELS = [
    TinyModel(
        "EdRecBackbone",
        EDREC,
        inputs,
        lambda backbone: [
            (keras_hub.models.EdRecSeq2SeqLM(backbone), inputs())
        ],
        real=lambda outputs, inputs: [
            outputs["decoder_sequence_output"],
            outputs["encoder_sequence_output"][inputs["encoder_padding_mask"]],
        ],
        # No norm ends the stacks: outputs reach 13, and the decoder multiplies
        # how the encoder is rounded.
        exact=5e-5,
    )
]
