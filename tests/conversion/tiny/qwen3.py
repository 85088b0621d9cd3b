from tests.conversion.causal_models import causal_model

MODELS = [
    causal_model(
        "Qwen3",
        task_names=("CausalLM", "TextEmbedder"),
        head_dim=4,
        sliding_window_size=8,
    )
]
