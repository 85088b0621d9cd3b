"""Llama: pre-LN causal blocks with grouped heads at rotary positions."""

import dataclasses

from keras_coda.conversion.llama_decoder import LLAMA
from keras_coda.conversion.registration import register_family

register_family(LLAMA)
register_family(dataclasses.replace(LLAMA, backbone="Llama3Backbone"))
