import keras_hub

from tests.conversion.models import t5_inputs
from tests.conversion.tiny import TinyModel

BART = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
    "max_sequence_length": 64,
}

MODELS = [
    TinyModel(
        "BartBackbone",
        BART,
        t5_inputs,
        lambda backbone: [
            (keras_hub.models.BartSeq2SeqLM(backbone), t5_inputs())
        ],
        real=lambda outputs, inputs: [
            outputs["decoder_sequence_output"],
            outputs["encoder_sequence_output"][
                inputs["encoder_padding_mask"].astype(bool)
            ],
        ],
    )
]
