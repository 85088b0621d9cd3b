from tests.conversion.causal_models import causal_model

MODELS = [
    causal_model("Llama"),
    causal_model(
        "Llama3",
        rope_frequency_adjustment_factor=8.0,
        rope_low_freq_factor=1.0,
        rope_high_freq_factor=4.0,
        rope_pretraining_sequence_length=16,
    ),
]
