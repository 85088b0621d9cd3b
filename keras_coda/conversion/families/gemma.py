"""Gemma 1 and 2: pre-LN causal blocks, some with norms after each part."""

from keras_coda.conversion.gemma_decoder import GEMMA
from keras_coda.conversion.registration import register_family

register_family(GEMMA)
