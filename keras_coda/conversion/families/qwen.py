"""Qwen 1 to 2.5: the blocks of Llama, some in a window of positions."""

import dataclasses

from keras_coda.backend_differences import has_windows
from keras_coda.conversion.llama_decoder import LLAMA
from keras_coda.conversion.llama_decoder import LlamaBlock
from keras_coda.conversion.registration import register_family


class QwenBlock(LlamaBlock):
    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        if layer.use_sliding_window_attention and has_windows():
            self.window = layer.sliding_window_size


register_family(
    dataclasses.replace(LLAMA, backbone="QwenBackbone", block_cls=QwenBlock)
)
