"""Models of one's own around a backbone."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import backbone_of
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict


def make_tagger(backbone):
    states = backbone(backbone.input)["sequence_output"]
    # An operation, a layer without weights and one with them.
    outputs = keras.layers.Dense(3)(keras.layers.Dropout(0.5)(states * 2.0))
    return keras.Model(backbone.input, outputs)


def test_the_dense_model_at_reduction_factor_1():
    tagger = make_tagger(bert_backbone())
    coda = keras_coda.coda_wrap(tagger, reduction_factor=1)
    assert isinstance(backbone_of(coda), keras_coda.CodaBackbone)
    inputs = bert_inputs()
    expected = predict(tagger, inputs)
    np.testing.assert_allclose(predict(coda, inputs), expected, atol=1e-5)
    keras_coda.set_reduction_factor(coda, 3)
    assert np.abs(predict(coda, inputs) - expected).max() > 1e-3


@slow_to_compile
def test_training_leaves_the_dense_model_as_it_is(tmp_path):
    tagger, inputs = make_tagger(bert_backbone()), bert_inputs()
    before = predict(tagger, inputs)
    coda = keras_coda.coda_wrap(tagger, adapter_dim=2)
    head = coda.layers[-1]
    backbone = backbone_of(coda)
    assert {id(w) for w in coda.trainable_weights} == {
        id(w) for w in [*backbone.trainable_weights, *head.weights]
    }
    coda.compile("adam", "mse")
    coda.fit(inputs, before + 1.0, verbose=0)
    np.testing.assert_array_equal(predict(tagger, inputs), before)
    coda.save(tmp_path / "tagger.keras")
    loaded = keras.saving.load_model(tmp_path / "tagger.keras")
    np.testing.assert_allclose(
        predict(loaded, inputs), predict(coda, inputs), atol=1e-5
    )


@slow_to_compile
def test_accelerate():
    tagger = make_tagger(bert_backbone(num_layers=3))
    inputs = {
        name: np.concatenate([values] * 12)
        for name, values in bert_inputs().items()
    }
    fast, calibration = keras_coda.training.accelerate(
        tagger,
        inputs,
        speedup=1.5,
        are_logits=True,
        adapter_dim=2,
        shortcut_dim=2,
        verbose=0,
    )
    blocks = backbone_of(fast).conditional_blocks
    factors = [block.reduction_factor for block in blocks]
    assert factors == calibration.reduction_factor
    assert calibration.speedup >= 1.5
    assert predict(fast, inputs).shape == predict(tagger, inputs).shape


def test_what_cannot_be_converted():
    class Own(keras.Model):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

        def call(self, inputs):
            return self.backbone(inputs)["pooled_output"]

    with pytest.raises(TypeError, match="must be a functional model"):
        keras_coda.coda_wrap(Own(bert_backbone()))
    converted = make_tagger(keras_coda.coda_wrap(bert_backbone()))
    with pytest.raises(ValueError, match="converted already"):
        keras_coda.coda_wrap(converted)
    two = [bert_backbone(), bert_backbone()]
    inputs = two[0].input
    outputs = [backbone(inputs)["pooled_output"] for backbone in two]
    with pytest.raises(TypeError, match="calls one backbone"):
        keras_coda.coda_wrap(keras.Model(inputs, outputs))
    with pytest.raises(TypeError, match="one of the tasks"):

        class OwnClassifier(keras_hub.models.BertTextClassifier):
            pass

        keras_coda.coda_wrap(OwnClassifier(bert_backbone(), num_classes=2))
