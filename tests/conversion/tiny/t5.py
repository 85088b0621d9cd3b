from tests.conversion.models import T5
from tests.conversion.models import t5_inputs
from tests.conversion.models import task_if_known
from tests.conversion.tiny import TinyModel

MODELS = [
    TinyModel(
        "T5Backbone",
        T5,
        t5_inputs,
        lambda backbone: task_if_known("T5Seq2SeqLM", backbone, t5_inputs()),
        real=lambda outputs, inputs: [
            outputs["decoder_sequence_output"],
            outputs["encoder_sequence_output"][
                inputs["encoder_padding_mask"].astype(bool)
            ],
        ],
    )
]
