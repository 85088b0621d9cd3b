from tests.conversion.causal_models import causal_model

MODELS = [
    causal_model(
        "Qwen", use_sliding_window_attention=True, sliding_window_size=8
    )
]
