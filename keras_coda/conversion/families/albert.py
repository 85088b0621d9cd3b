"""ALBERT: a few `TransformerEncoder` layers, each called at several depths.

Each depth gets a router, an adapter and layer normalisations of its own.
"""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family


def blocks(backbone):
    """The layers in the order of the calls."""
    num_calls = backbone.num_layers // backbone.num_groups
    return [
        layer
        for group in backbone.transformer_layers
        for _ in range(num_calls)
        for layer in group
    ]


register_family(
    Family(
        backbone="AlbertBackbone",
        blocks=blocks,
        num_prefix_tokens=1,
        pooled="[CLS]",
    )
)
