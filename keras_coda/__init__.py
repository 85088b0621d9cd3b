"""Conditional Adapters (CoDA) for Keras 3.

Pretrained Transformers that train 1% of their parameters and send only a
fraction of the tokens through each frozen block.
"""

import importlib.util

from keras_coda import callbacks
from keras_coda import layers
from keras_coda import ops
from keras_coda.layers.set_reduction_factor import set_reduction_factor

__version__ = "0.2.0"

__all__ = [
    "CodaBackbone",
    "analysis",
    "callbacks",
    "coda_wrap",
    "conversion",
    "export",
    "layers",
    "layout_map",
    "ops",
    "predict_with_adapters",
    "set_reduction_factor",
    "speech",
    "supported_models",
    "training",
]

# The layers need Keras alone; the conversion of KerasHub models needs KerasHub.
if importlib.util.find_spec("keras_hub") is not None:
    from keras_coda import analysis
    from keras_coda import conversion
    from keras_coda import speech
    from keras_coda import training
    from keras_coda.conversion import CodaBackbone
    from keras_coda.conversion import coda_wrap
    from keras_coda.conversion import layout_map
    from keras_coda.conversion import predict_with_adapters
    from keras_coda.conversion import supported_models
    from keras_coda.exporting import export
else:
    _needs_keras_hub = [name for name in __all__ if name not in globals()]
    __all__ = [name for name in __all__ if name in globals()]

    def __getattr__(name):
        if name in _needs_keras_hub:
            raise ImportError(
                f"`keras_coda.{name}` needs KerasHub. "
                "Run `pip install keras-coda[hub]`."
            )
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
