from tests.conversion.towers import two_towers

# The last token is pooled, whatever it is.
MODELS = two_towers("SigLIP", 1, num_prefix_tokens=0)
