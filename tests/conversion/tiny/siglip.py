from tests.conversion.towers import two_towers

# The last token is pooled, whatever it is; images are pooled by attention.
MODELS = two_towers(
    "SigLIP",
    1,
    num_prefix_tokens=0,
    text_is_pooled=True,
    pooled_last=("text_encoder",),
)
