import math

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.training import aligner
from keras_coda.training.aligner import make_aligner
from keras_coda.training.inputs import Batches
from keras_coda.training.inputs import make_batches
from keras_coda.training.observed import log_softmax
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
from tests.conversion.models import randomize
from tests.conversion.models import t5_backbone
from tests.conversion.models import t5_inputs
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import tiny_models

MODELS = {
    "bert": (bert_backbone, bert_inputs),
    "t5": (t5_backbone, t5_inputs),
    "vit": (vit_backbone, vit_inputs),
}


@pytest.mark.parametrize(
    "family",
    ["bert", *(pytest.param(x, marks=slow_to_compile) for x in ("t5", "vit"))],
)
def test_hidden_states_come_closer(family):
    make_backbone, make_inputs = MODELS[family]
    dense, inputs = make_backbone(), make_inputs()
    before = predict(dense, inputs)
    coda = keras_coda.coda_wrap(dense, reduction_factor=3)
    weights = coda.get_weights()
    history = keras_coda.training.align(
        coda,
        dense,
        inputs,
        epochs=15,
        optimizer=keras.optimizers.Adam(1e-2),
        verbose=0,
    )
    errors = history.history["hidden_error"]
    assert errors[-1] < 0.7 * errors[0]
    # Nothing frozen was trained, in neither model.
    trained = {id(weight) for weight in trained_weights(coda).values()}
    for weight, old, new in zip(coda.weights, weights, coda.get_weights()):
        assert id(weight) in trained or np.array_equal(old, new), weight.path
    after = predict(dense, inputs)
    for old, new in zip(keras.tree.flatten(before), keras.tree.flatten(after)):
        np.testing.assert_array_equal(old, new)
    assert len(coda.trainable_weights) == len(trained)


def test_no_error_at_reduction_factor_1():
    dense = bert_backbone()
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    history = keras_coda.training.align(
        coda,
        dense,
        bert_inputs(),
        optimizer=keras.optimizers.SGD(0.0),
        verbose=0,
    )
    assert history.history["hidden_error"][0] < 1e-10


def around(backbone):
    outputs = backbone(backbone.input)["sequence_output"]
    return keras.Model(backbone.input, keras.layers.Dense(3)(outputs))


@slow_to_compile
@pytest.mark.parametrize(
    "make",
    [
        lambda backbone: keras_hub.models.BertTextClassifier(backbone, 3),
        around,
    ],
    ids=["task", "around"],
)
def test_hidden_states_of_a_model_with_a_head(make):
    backbone = bert_backbone()
    dense = make(backbone)
    errors = []
    # A block that is left out has no gradient, and the head none at all.
    for coda, model in [
        (keras_coda.coda_wrap(x, reduction_factor=[3, math.inf]), x)
        for x in (backbone, dense)
    ]:
        for layer in backbone_of(coda).trained_layers():
            randomize(layer, seed=2)
        history = keras_coda.training.align(
            coda, model, bert_inputs(), epochs=2, verbose=0
        )
        errors.append(history.history["hidden_error"])
    # What is aligned is the same with a head.
    np.testing.assert_allclose(errors[1], errors[0], rtol=1e-4)


@slow_to_compile
def test_images_with_texts():
    tiny = tiny_models()["PARSeqBackbone"]
    ((dense, inputs),) = tiny.tasks(tiny.make())
    coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    history = keras_coda.training.align(coda, dense, inputs, verbose=0)
    assert history.history["hidden_error"][0] > 0


@slow_to_compile
def test_the_error_is_relative_and_of_real_tokens():
    dense, inputs = bert_backbone(num_layers=1), bert_inputs()
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    history = keras_coda.training.align(
        coda, dense, inputs, optimizer=keras.optimizers.SGD(0.0), verbose=0
    )
    # With one block its output is the sequence output.
    real = inputs["padding_mask"].astype(bool)
    target = predict(dense, inputs)["sequence_output"][real]
    error = predict(coda, inputs)["sequence_output"][real] - target
    assert history.history["hidden_error"][0] == pytest.approx(
        (error**2).sum() / (target**2).sum(), rel=1e-4
    )


@slow_to_compile
def test_the_divergence_is_of_real_tokens():
    tagger, inputs = around(bert_backbone()), bert_inputs()
    coda = keras_coda.coda_wrap(tagger, reduction_factor=2)
    history = keras_coda.training.align(
        coda,
        tagger,
        inputs,
        logits_weight=1.0,
        optimizer=keras.optimizers.SGD(0.0),
        verbose=0,
    )
    logs, target_logs = (
        log_softmax(predict(model, inputs)) for model in (coda, tagger)
    )
    divergences = np.sum(np.exp(target_logs) * (target_logs - logs), axis=-1)
    is_real = inputs["padding_mask"].astype(bool)
    assert not is_real.all()
    np.testing.assert_allclose(
        history.history["divergence"], divergences[is_real].mean(), rtol=1e-4
    )


@slow_to_compile
def test_logits():
    dense = keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=3)
    randomize(dense, seed=1)
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    before, flags = dense.get_weights(), [w.trainable for w in dense.weights]
    history = keras_coda.training.align(
        coda,
        dense,
        bert_inputs(),
        logits_weight=1.0,
        epochs=15,
        optimizer=keras.optimizers.AdamW(1e-2),
        verbose=0,
    ).history
    assert set(history) == {"loss", "hidden_error", "divergence"}
    assert 0 <= history["divergence"][-1] < 0.5 * history["divergence"][0]
    assert all(map(np.array_equal, before, dense.get_weights()))
    assert flags == [w.trainable for w in dense.weights]


def test_targets_that_are_kept_are_those_of_each_step():
    dense = around(bert_backbone(num_layers=1))
    coda = keras_coda.coda_wrap(dense, reduction_factor=3)
    batches = make_batches(coda, bert_inputs(), batch_size=2)
    histories = []
    for keeps in (False, True):
        model = make_aligner(coda, dense, "pretrained", 1.0, 2.0)
        model.compile(keras.optimizers.SGD(0.0))
        x = model.with_targets(batches) if keeps else Batches(batches)
        histories.append(model.fit(x, verbose=0).history)
    assert histories[0]["divergence"][0] > 0
    for name, values in histories[0].items():
        assert histories[1][name] == pytest.approx(values, rel=1e-4), name


@slow_to_compile
def test_the_target_keeps_nothing_for_gradients(monkeypatch):
    kept, divergence = [], aligner._divergence

    def record(logits, target_logits, mask):
        kept.append((logits.requires_grad, target_logits.requires_grad))
        return divergence(logits, target_logits, mask)

    monkeypatch.setattr(aligner, "_divergence", record)
    dense = keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=3)
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    keras_coda.training.align(
        coda, dense, bert_inputs(), logits_weight=1.0, verbose=0
    )
    # Keras builds the model first, in a call without gradients.
    assert kept[-1] == (True, False)


@slow_to_compile
@pytest.mark.parametrize("settings", [{"shortcut_dim": 2, "lora_rank": 2}, {}])
def test_the_fine_tuned_model_itself_as_target(settings):
    dense = keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=3)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1, **settings)
    for index, weight in enumerate(trained_weights(coda).values()):
        rng = np.random.default_rng(index)
        weight.assign(rng.normal(scale=0.3, size=weight.shape))

    def aligned(epochs, learning_rate):
        return keras_coda.training.align(
            coda,
            dense,
            bert_inputs(),
            target="fine_tuned",
            logits_weight=1.0,
            epochs=epochs,
            optimizer=keras.optimizers.Adam(learning_rate),
            verbose=0,
        ).history

    before = aligned(1, 0.0)
    assert before["hidden_error"][0] < 1e-10
    # No square, so that the rounding of float32 shows.
    assert before["divergence"][0] < 1e-6
    coda.reduction_factor = 3
    history = aligned(20, 1e-2)
    assert history["loss"][-1] < 0.5 * history["loss"][0]


def test_bad_arguments():
    dense = bert_backbone()
    coda = keras_coda.coda_wrap(dense)
    align = keras_coda.training.align
    with pytest.raises(TypeError, match="`coda` must be .* `keras_coda.coda_w"):
        align(dense, dense, bert_inputs())
    with pytest.raises(TypeError, match="`dense` must be .*BertBackbone"):
        align(coda, vit_backbone(), bert_inputs())
    with pytest.raises(ValueError, match="`target` must be one of"):
        align(coda, dense, bert_inputs(), target="sparse")
    with pytest.raises(ValueError, match="logits_weight=-1"):
        align(coda, dense, bert_inputs(), logits_weight=-1)
    with pytest.raises(TypeError, match="needs a task"):
        align(coda, dense, bert_inputs(), logits_weight=1.0)
