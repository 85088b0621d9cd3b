from tests.conversion.causal_models import causal_model

MODELS = [causal_model("Mistral", sliding_window=8)]
