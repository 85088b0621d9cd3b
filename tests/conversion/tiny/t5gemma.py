import keras_hub

from tests.conversion.models import t5_inputs
from tests.conversion.tiny import TinyModel

T5GEMMA = {
    "vocabulary_size": 50,
    "dropout_rate": 0.1,
    "query_pre_attn_scalar": 2.0,
    "sliding_window": 3,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 10.0,
}
for part in ("encoder", "decoder"):
    T5GEMMA |= {
        f"{part}_hidden_dim": 16,
        f"{part}_intermediate_dim": 32,
        f"{part}_num_layers": 2,
        f"{part}_num_attention_heads": 4,
        f"{part}_num_key_value_heads": 2,
        f"{part}_head_dim": 4,
        f"{part}_layer_types": ["sliding_attention", "full_attention"],
    }


def real(outputs, inputs):
    return [
        outputs["decoder_sequence_output"],
        outputs["encoder_sequence_output"][
            inputs["encoder_padding_mask"].astype(bool)
        ],
    ]


MODELS = [
    TinyModel(
        "T5GemmaBackbone",
        T5GEMMA,
        t5_inputs,
        lambda backbone: [
            (keras_hub.models.T5GemmaSeq2SeqLM(backbone), t5_inputs())
        ],
        real=real,
    ),
    TinyModel(
        "T5Gemma2Backbone",
        {**T5GEMMA, "attn_logit_softcapping": None},
        t5_inputs,
        lambda backbone: [
            (keras_hub.models.T5Gemma2Seq2SeqLM(backbone), t5_inputs())
        ],
        real=real,
    ),
]
