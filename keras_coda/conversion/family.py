"""What a model family has to say: data, in one module each in `families`.

`docs/adding_a_family.md` walks through one.
"""

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable

from keras_coda.conversion.adapted_layer import AdaptedLayer
from keras_coda.conversion.encoder_block import TRANSFORMER_ENCODER
from keras_coda.conversion.encoder_block import EncoderBlock
from keras_coda.conversion.encoder_block import Parts
from keras_coda.layers import ConditionalTransformerBlock


@dataclasses.dataclass(frozen=True)
class Family:
    """What `coda_wrap` has to know about a KerasHub backbone class.

    Args:
        backbone: the backbone class, or the name of a class of
            `keras_hub.models`, which an older KerasHub may lack.
        parts: `Parts` of the encoder layers. Defaults to those of
            `keras_hub.layers.TransformerEncoder`.
        blocks: function of the backbone that lists the encoder layers to
            route, one for each call; or the name of the attribute that does;
            or `None` if only nested backbones are routed. Defaults to
            `"transformer_layers"`.
        block_cls: the `DenseBlock` made from an encoder layer; it takes
            `layer, parts, **kwargs`. Defaults to `EncoderBlock`.
        layer_cls: the `ConditionalTransformerBlock` that replaces an encoder
            layer; a subclass where the layer is called with other arguments,
            or returns more. Defaults to `ConditionalTransformerBlock`.
        decoder_blocks: like `blocks`, the decoder layers that get dense
            adapters. Defaults to none.
        decoder_cls: what replaces a decoder layer; it takes `layer,
            hidden_dim, settings, **kwargs`. Defaults to
            `AdaptedLayer`.
        run: dict from the class name of a layer that runs encoder layers
            inside to a function that runs it: it takes `layer, call` and the
            layer's arguments, and calls `call(part, ...)` in the place of each
            part. Defaults to none.
        num_sequences: function of the backbone that returns a dict from the
            name of a layer in `run` to the number of sequences that it makes
            of each input; for `keras_coda.analysis.flops`. Defaults to one.
        num_prefix_tokens: how many leading tokens the family's heads pool, an
            int or a function of the backbone. Defaults to `0`.
        pinned: function from the dict of the backbone's inputs to a bool
            tensor of shape `(batch_size, n)`, the tokens that are always
            routed, where that is not a prefix. Defaults to none.
        pooled: what is pinned, in words. Defaults to `"nothing"`.
        routed: what is routed, in words. Defaults to `"encoder"`.
        exports: the formats of `keras_coda.export` that the tests write and run
            for the family. Defaults to `("tf_saved_model",)`.
        reduction_factor: what `coda_wrap` takes if it is told none; a number,
            or a function of the number of blocks that returns a list. Defaults
            to `4`.
        lora_layer_names: the names of the projections that LoRA changes.
            Defaults to `("query", "value")`.

    Example:

    >>> family = keras_coda.conversion.Family(
    ...     backbone="ElectraBackbone", num_prefix_tokens=1, pooled="[CLS]"
    ... )
    >>> family.blocks
    'transformer_layers'
    """

    backbone: type | str
    parts: Parts = TRANSFORMER_ENCODER
    blocks: Callable | str | None = "transformer_layers"
    block_cls: type = EncoderBlock
    layer_cls: type = ConditionalTransformerBlock
    decoder_blocks: Callable | str | None = None
    decoder_cls: type = AdaptedLayer
    run: dict = dataclasses.field(default_factory=dict)
    num_sequences: Callable = lambda backbone: {}
    num_prefix_tokens: Callable | int = 0
    pinned: Callable | None = None
    pooled: str = "nothing"
    routed: str = "encoder"
    exports: tuple = ("tf_saved_model",)
    reduction_factor: Callable | float = 4
    lora_layer_names: tuple = ("query", "value")

    def list_blocks(self, backbone):
        """The encoder layers of a backbone, one for each call."""
        return _listed(self.blocks, backbone)

    def list_decoder_blocks(self, backbone):
        """The decoder layers of a backbone."""
        return _listed(self.decoder_blocks, backbone)

    @property
    def takes_prefix(self):
        """Whether `adapter="prefix"` reaches all self-attention."""
        return self.block_cls.takes_prefix and self.decoder_blocks is None

    @property
    def pins_a_prefix(self):
        """Whether what is pinned is known before the inputs are."""
        return self.pinned is None and bool(self.blocks)

    def count_prefix_tokens(self, backbone):
        """How many leading tokens of a backbone are always routed."""
        if callable(self.num_prefix_tokens):
            return self.num_prefix_tokens(backbone)
        return self.num_prefix_tokens

    def default_reduction_factor(self, num_blocks):
        """The reduction factor of a backbone with so many blocks."""
        if callable(self.reduction_factor):
            return self.reduction_factor(num_blocks)
        return self.reduction_factor


def _listed(blocks, backbone):
    if not blocks:
        return []
    if isinstance(blocks, str):
        return list(getattr(backbone, blocks))
    return list(blocks(backbone))


def import_families():
    """Imports every module in `families`; each registers what it holds."""
    package = importlib.import_module("keras_coda.conversion.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
