"""Backbones of KerasHub that cannot be routed, with the reason."""

_WINDOWS = (
    "its attention runs in windows of neighbouring tokens, which a router that "
    "leaves tokens out would tear"
)

UNSUPPORTED = {
    "FNetBackbone": (
        "it mixes tokens by a Fourier transform of the whole sequence, which "
        "has no rows that could be left out"
    ),
    "SwinTransformerBackbone": _WINDOWS,
    "ViTDetBackbone": _WINDOWS,
    "SAMBackbone": f"{_WINDOWS}: its image encoder is a ViTDet",
    "DepthAnythingBackbone": (
        "a head of convolutions reads the tokens of several blocks, those that "
        "were left out like the others; convert its DINOv2 backbone alone"
    ),
    "MiTBackbone": (
        "its keys are convolutions over the grid of all tokens, and its "
        "feedforward networks mix neighbouring tokens"
    ),
    "XLNetBackbone": (
        "it computes two streams of tokens, whose relative attention is over "
        "all of them and a memory"
    ),
    "RWKV7Backbone": (
        "it is recurrent: a token that is left out would be missing from the "
        "state of all that follow"
    ),
}
