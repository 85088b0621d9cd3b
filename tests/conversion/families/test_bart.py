import keras_hub
import numpy as np
from keras import ops

import keras_coda
from tests.conversion.models import randomize
from tests.conversion.models import t5_inputs
from tests.conversion.tiny import tiny_models


def dense_task():
    backbone = tiny_models()["BartBackbone"].make()
    return keras_hub.models.BartSeq2SeqLM(backbone)


def prompt():
    inputs = t5_inputs()
    inputs["decoder_token_ids"][:, 1:] = 0
    inputs["decoder_padding_mask"][:, 1:] = 0
    return inputs


def generate(task):
    task.compile(sampler="greedy")
    outputs = task.generate(prompt(), stop_token_ids=None)
    return ops.convert_to_numpy(outputs["decoder_token_ids"])


def test_generate_equals_dense_at_reduction_factor_1():
    dense = dense_task()
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    assert np.array_equal(generate(coda), generate(dense))


def test_generate_equals_greedy_search_without_cache():
    coda = keras_coda.coda_wrap(dense_task(), reduction_factor=3)
    # Adapters that do something.
    for layer in coda.backbone.trained_layers():
        randomize(layer, seed=3)
    inputs = prompt()
    for step in range(1, 5):
        logits = ops.convert_to_numpy(coda(inputs))
        inputs["decoder_token_ids"][:, step] = logits[:, step - 1].argmax(-1)
        inputs["decoder_padding_mask"][:, step] = 1
    assert np.array_equal(generate(coda), inputs["decoder_token_ids"])
