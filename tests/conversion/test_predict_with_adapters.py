import threading

import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion import models
from tests.conversion.tiny import tiny_models

NAMES = ["films", "news", "films", "films", "mail", "news", "films"]
LENGTHS = (12, 7, 12, 3, 9, 1, 5)


@pytest.fixture(scope="module")
def converted():
    """Models with adapters and heads of their own on one frozen backbone."""
    backbone = tiny_models()["BertBackbone"].make()
    made = {}
    for seed, name in enumerate(dict.fromkeys(NAMES)):
        dense = keras_hub.models.BertTextClassifier(backbone, num_classes=3)
        coda = keras_coda.coda_wrap(dense, reduction_factor=seed + 1)
        for layer in [*coda.backbone.trained_layers(), coda.output_dense]:
            models.randomize(layer, seed=seed)
        made[name] = coda
    return made


@slow_to_compile
def test_each_row_is_what_its_adapter_predicts_alone(converted):
    inputs = models.bert_inputs(lengths=LENGTHS)
    outputs = keras_coda.predict_with_adapters(
        converted, inputs, NAMES, batch_size=2
    )
    for row, name in enumerate(NAMES):
        alone = {key: value[row : row + 1] for key, value in inputs.items()}
        expected = models.compute(converted[name], alone)
        np.testing.assert_allclose(
            outputs[row : row + 1], expected, rtol=1e-5, atol=1e-5
        )


def test_frozen_weights_are_shared(converted):
    kernels = {
        id(weight)
        for coda in converted.values()
        for weight in coda.backbone.weights
        if weight.path.endswith("query/kernel")
    }
    assert len(kernels) == models.NUM_LAYERS


def test_structured_outputs():
    backbone = tiny_models()["BertBackbone"].make()
    codas = {name: keras_coda.coda_wrap(backbone) for name in "ab"}
    inputs = models.bert_inputs()
    outputs = keras_coda.predict_with_adapters(codas, inputs, "aba")
    assert outputs["pooled_output"].shape == (3, models.HIDDEN_DIM)


def test_a_model_is_replaced_while_others_predict(converted):
    """Each answer is of one adapter or the other."""
    inputs = models.bert_inputs()
    table = {"live": converted["films"]}

    def predict():
        return keras_coda.predict_with_adapters(
            table, inputs, ["live"] * 3, batch_size=1
        )

    expected = {}
    for name in ("films", "news"):
        table["live"] = converted[name]
        expected[name] = predict()
    stop = threading.Event()

    def replace():
        while not stop.is_set():
            for name in expected:
                table["live"] = converted[name]

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(10):
            outputs = predict()
            assert any(
                np.allclose(outputs, value, atol=1e-5)
                for value in expected.values()
            )
    finally:
        stop.set()
        thread.join()


def test_bad_input(converted):
    inputs = models.bert_inputs()
    with pytest.raises(ValueError, match="'mail', 'news'.* Received: cats"):
        keras_coda.predict_with_adapters(
            converted, inputs, ["news", "cats", "news"]
        )
    with pytest.raises(ValueError, match="Received: 1 names, 3 rows"):
        keras_coda.predict_with_adapters(converted, inputs, ["news"])


def test_models_with_other_heads_are_called_apart(converted):
    dense = keras_hub.models.BertTextClassifier(
        tiny_models()["BertBackbone"].make(), num_classes=2
    )
    others = {**converted, "few": keras_coda.coda_wrap(dense)}
    with pytest.raises(ValueError, match=r"\[\(2,\)\] and \[\(3,\)\]"):
        keras_coda.predict_with_adapters(
            others, models.bert_inputs(), ["news", "few", "news"]
        )


@same_on_every_backend
def test_pairs_of_texts_are_two_columns():
    dense = models.text_classifier()
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    pairs = models.WORDS[:3], models.WORDS[1:4]
    outputs = keras_coda.predict_with_adapters(
        {"only": coda}, pairs, ["only"] * 3
    )
    expected = coda.predict(tuple(map(np.array, pairs)), verbose=0)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
