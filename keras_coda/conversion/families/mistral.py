"""Mistral: the blocks of Llama, in a window of positions."""

import dataclasses

from keras_coda.conversion.llama_decoder import LLAMA
from keras_coda.conversion.llama_decoder import LlamaBlock
from keras_coda.conversion.registration import register_family


class MistralBlock(LlamaBlock):
    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        self.window = layer.sliding_window


register_family(
    dataclasses.replace(
        LLAMA, backbone="MistralBackbone", block_cls=MistralBlock
    )
)
