"""Depth Anything: a DINOv2 whose pyramid a convolutional head reads."""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(
        backbone="DepthAnythingBackbone",
        blocks=None,
        pooled="class and register tokens",
        routed="image encoder",
    )
)
