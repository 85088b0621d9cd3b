"""Qwen 3: the blocks of Llama, whose heads are normalised."""

import dataclasses

from keras_coda.backend_differences import has_windows
from keras_coda.conversion.encoder_block import find_part
from keras_coda.conversion.llama_decoder import LLAMA
from keras_coda.conversion.llama_decoder import LlamaBlock
from keras_coda.conversion.registration import register_family


class Qwen3Block(LlamaBlock):
    """The norms of the heads stay frozen, as all that is inside attention."""

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        if has_windows():
            self.window = layer.sliding_window_size

    def query(self, rows):
        norm = find_part(self.attention, "query_dense_layernorm")
        return norm(super().query(rows))

    def key(self, rows):
        norm = find_part(self.attention, "key_dense_layernorm")
        return norm(super().key(rows))


register_family(
    dataclasses.replace(LLAMA, backbone="Qwen3Backbone", block_cls=Qwen3Block)
)
