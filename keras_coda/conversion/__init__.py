"""Conversion of KerasHub models to conditional computation."""

import importlib.util

if importlib.util.find_spec("keras_hub") is None:
    raise ImportError(
        "`keras_coda.conversion`, and what stands on it, needs KerasHub. "
        "Run `pip install keras-coda[hub]`."
    )

from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.conversion.family import Family
from keras_coda.conversion.layout_map import layout_map
from keras_coda.conversion.predict_with_adapters import predict_with_adapters
from keras_coda.conversion.registration import register_family
from keras_coda.conversion.registration import register_task
from keras_coda.conversion.supported_models import supported_models

__all__ = [
    "CodaBackbone",
    "EncoderBlock",
    "Family",
    "Parts",
    "coda_wrap",
    "layout_map",
    "predict_with_adapters",
    "register_family",
    "register_task",
    "supported_models",
]
