"""Conversion of KerasHub models to conditional computation."""

from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_wrap import coda_wrap

__all__ = ["CodaBackbone", "coda_wrap"]
