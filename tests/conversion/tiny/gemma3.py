from tests.conversion.causal_models import causal_model
from tests.conversion.tiny.gemma import GEMMA

MODELS = [
    causal_model(
        "Gemma3",
        task_names=("CausalLM", "TextEmbedder"),
        image_size=16,
        **GEMMA,
    )
]
