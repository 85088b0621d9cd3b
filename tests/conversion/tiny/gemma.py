from tests.conversion.causal_models import causal_model

# As Gemma 2, which has all that Gemma 1 has.
GEMMA = {
    "head_dim": 4,
    "use_post_ffw_norm": True,
    "use_post_attention_norm": True,
    "attention_logit_soft_cap": 5.0,
    "final_logit_soft_cap": 10.0,
    "use_sliding_window_attention": True,
    "sliding_window_size": 8,
}

MODELS = [causal_model("Gemma", **GEMMA)]
