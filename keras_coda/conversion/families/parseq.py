"""PARSeq: a ViT whose tokens a decoder of characters reads."""

from keras_coda.conversion.family import Family
from keras_coda.conversion.registration import register_family

register_family(
    Family(backbone="PARSeqBackbone", blocks=None, routed="image encoder")
)
