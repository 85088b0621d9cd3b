"""One tiny model of each family, for all tests: `tiny_models()`.

A module of this package is named after the module of the family and holds a
list `MODELS` of `TinyModel`.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

import keras_hub

from tests.conversion.models import randomize

# They have blocks and inputs of another family here, or those of BERT, T5 and
# ViT, which have tests of their own.
LIKE_ANOTHER = (
    "AlbertBackbone",
    "BartBackbone",
    "BertBackbone",
    "CLIPTextEncoder",
    "CLIPVisionEncoder",
    "DINOV2Backbone",
    "DeiTBackbone",
    "DistilBertBackbone",
    "EdRecBackbone",
    "ElectraBackbone",
    "GemmaBackbone",
    "Llama3Backbone",
    "LlamaBackbone",
    "MetaCLIP2Backbone",
    "MetaCLIP2TextEncoder",
    "MetaCLIP2VisionEncoder",
    "MistralBackbone",
    "QwenBackbone",
    "RobertaBackbone",
    "SigLIPTextEncoder",
    "SigLIPVisionEncoder",
    "T5Backbone",
    "T5Gemma2Backbone",
    "ViTBackbone",
    "XLMRobertaBackbone",
)


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """How to make a tiny dense model of a family, and what to feed it.

    Args:
        backbone: the name of a class of `keras_hub.models`.
        config: the arguments of the class, or a function that returns them.
        inputs: function of the sequence length (12 by default) that returns a
            batch of three rows for the backbone. The real tokens are the same
            for every length.
        tasks: function of a dense backbone that returns pairs of each KerasHub
            task and its inputs.
        real: optional function of outputs and inputs that returns what padding
            must not change. `None` for families without padding.
        num_prefix_tokens: what `coda.num_prefix_tokens` has to be.
        exact: the largest difference to the dense model at r = 1.
        fit_dtype: the dtype policy to fit in; mixed, where KerasHub can.
        export_arguments: keyword arguments that `keras_coda.export` needs.
        without_gradient: ends of the paths of trained weights on which no
            output depends: the router of a last block of whose tokens only
            pinned ones are pooled.
        routes_by_row: whether the number of routed tokens is that of a row's
            real tokens over r, and not that of all positions.
    """

    backbone: str
    config: dict | Callable
    inputs: Callable
    tasks: Callable = lambda backbone: []
    real: Callable | None = None
    num_prefix_tokens: int | str = 0
    exact: float = 1e-5
    fit_dtype: str = "mixed_bfloat16"
    export_arguments: dict = dataclasses.field(default_factory=dict)
    without_gradient: tuple = ()
    routes_by_row: bool = False

    def make(self, seed=0, **kwargs):
        """A dense backbone whose weights all matter."""
        config = self.config() if callable(self.config) else self.config
        backbone_cls = getattr(keras_hub.models, self.backbone)
        return randomize(backbone_cls(**{**config, **kwargs}), seed)


def _collect():
    found = {}
    for module in pkgutil.iter_modules(__path__):
        models = importlib.import_module(f"{__name__}.{module.name}").MODELS
        found |= {tiny.backbone: tiny for tiny in models}
    return found


def tiny_models():
    """The table, by the name of the dense backbone class."""
    if not _TABLE:
        _TABLE.update(_collect())
    return _TABLE


_TABLE = {}
