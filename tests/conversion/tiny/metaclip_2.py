from tests.conversion.towers import two_towers

MODELS = two_towers(
    "MetaCLIP2",
    2,
    num_prefix_tokens=1,
    pooled_last=("vision_encoder", "text_encoder"),
    projection_dim=8,
)
