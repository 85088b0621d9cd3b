import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
from tests.conversion.models import randomize
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"reduction_factor": 0.5}, ValueError, "at least 1 .*=0.5"),
        ({"reduction_factor": float("nan")}, ValueError, "=nan"),
        ({"reduction_factor": "4"}, TypeError, "a number of at least 1"),
        ({"reduction_factor": [4, 4, 4]}, ValueError, "the 2 .* list of 3"),
        ({"reduction_factor": [4, 0]}, ValueError, "at least 1 .*=0"),
        ({"adapter_dim": 0}, ValueError, "`adapter_dim` must be at least 1"),
        ({"adapter_dim": 1.5}, TypeError, "`adapter_dim` must be an integer"),
        ({"attention": "all"}, ValueError, "k_to_all.*attention='all'"),
        ({"router": "best"}, ValueError, "first_k.*'best'"),
        ({"epsilon": 0.0}, ValueError, "`epsilon` must be a positive"),
        ({"num_prefix_tokens": -1}, ValueError, "`num_prefix_tokens` must be"),
        ({"num_prefix_tokens": "all"}, TypeError, "`num_prefix_tokens` must"),
    ],
)
def test_bad_arguments(arguments, error, match):
    backbone = bert_backbone()
    with pytest.raises(error, match=match):
        keras_coda.coda_wrap(backbone, **arguments)
    # The backbone was not frozen by the attempt.
    assert len(backbone.trainable_weights) == len(backbone.weights)


def test_wrapping_twice():
    coda = keras_coda.coda_wrap(bert_backbone())
    with pytest.raises(ValueError, match="converted already"):
        keras_coda.coda_wrap(coda)
    task = keras_hub.models.BertTextClassifier(coda, num_classes=2)
    with pytest.raises(ValueError, match="converted already"):
        keras_coda.coda_wrap(task)


@pytest.mark.parametrize(
    "model",
    [
        "bert_base_en",
        None,
        keras.layers.Dense(3),
        keras.Sequential([keras.layers.Dense(3)]),
    ],
)
def test_unsupported_models(model):
    match = "BertBackbone.*T5Backbone.*ViTBackbone.*adding_a_family"
    with pytest.raises(TypeError, match=match):
        keras_coda.coda_wrap(model)


def test_unsupported_backbone():
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=10,
        num_layers=1,
        num_heads=1,
        hidden_dim=4,
        intermediate_dim=8,
        max_sequence_length=8,
    )
    with pytest.raises(TypeError, match="of type GPT2Backbone"):
        keras_coda.coda_wrap(backbone)


def test_task_of_an_own_class():
    class OwnClassifier(keras_hub.models.BertTextClassifier):
        pass

    task = OwnClassifier(bert_backbone(), num_classes=2)
    with pytest.raises(TypeError, match="BertMaskedLM.*model.backbone"):
        keras_coda.coda_wrap(task)


def test_backbone_in_a_model_of_ones_own():
    coda = keras_coda.coda_wrap(bert_backbone(), reduction_factor=4)
    outputs = keras.layers.Dense(2)(coda(coda.input)["pooled_output"])
    model = keras.Model(coda.input, outputs)
    reduced = predict(model, bert_inputs())
    keras_coda.set_reduction_factor(model, 1)
    dense = predict(model, bert_inputs())
    assert np.abs(dense - reduced).max() > 1e-3
    assert coda.reduction_factor == 1


def test_a_list_of_reduction_factors_keeps_its_order_in_a_nested_model():
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2)
    )
    keras_coda.set_reduction_factor(task, [2, 3])
    assert task.backbone.reduction_factor == [2, 3]
    outer = keras.Model(task.input, task(task.input))
    keras_coda.set_reduction_factor(outer, [5, 6])
    assert task.backbone.reduction_factor == [5, 6]


def test_reduction_factor_of_a_fitted_task():
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2)
    )
    randomize(task, seed=1)
    inputs, labels = bert_inputs(), np.array([0, 1, 1])
    task.fit(inputs, labels, batch_size=3, verbose=0)
    reduced = predict(task, inputs)
    reduced_loss = task.evaluate(inputs, labels, verbose=0)[0]
    # Of the backbone: the task notices.
    task.backbone.reduction_factor = 1
    assert np.abs(predict(task, inputs) - reduced).max() > 1e-3
    dense_loss = task.evaluate(inputs, labels, verbose=0)[0]
    assert abs(dense_loss - reduced_loss) > 1e-4
    # Of the task, per block.
    task.reduction_factor = [4, 4]
    assert task.backbone.reduction_factor == 4
    assert_close(predict(task, inputs), reduced)
    with pytest.raises(ValueError, match="the 2 conditional blocks"):
        task.reduction_factor = [1]
    with pytest.raises(ValueError, match="at least 1"):
        task.reduction_factor = [2, 0.1]
    assert task.reduction_factor == 4


class ChangeReduction(keras.callbacks.Callback):
    """Sets the reduction factor of each batch and notes the mean losses."""

    def __init__(self, reduction_factors):
        super().__init__()
        self.reduction_factors = reduction_factors
        self.means = []

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reduction_factor = self.reduction_factors[batch]

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(logs["loss"])


def test_reduction_factor_within_fit():
    coda = keras_coda.coda_wrap(vit_backbone())
    inputs = np.tile(vit_inputs()[:1], (3, 1, 1, 1))
    targets = np.zeros_like(predict(coda, inputs))
    coda.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    callback = ChangeReduction([4, 1, 4])
    coda.fit(inputs, targets, batch_size=1, callbacks=[callback], verbose=0)
    first, second, third = np.diff(
        np.array(callback.means) * [1, 2, 3], prepend=0.0
    )
    assert first == pytest.approx(third, rel=1e-4)
    assert first != pytest.approx(second, rel=1e-3)


def test_training_leaves_the_dense_task_as_it_was():
    dense = keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2)
    expected = predict(dense, bert_inputs())
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    coda.fit(bert_inputs(), np.array([0, 1, 1]), epochs=2, verbose=0)
    assert_close(predict(dense, bert_inputs()), expected, atol=0)


def test_two_conversions_do_not_interfere():
    dense = bert_backbone()
    expected = predict(dense, bert_inputs())
    first = keras_coda.coda_wrap(dense, reduction_factor=1)
    second = keras_coda.coda_wrap(dense, reduction_factor=1)
    for layer in first.trained_layers():
        randomize(layer, seed=5)
    assert_close(predict(second, bert_inputs()), expected)
    assert (
        np.abs(
            predict(first, bert_inputs())["pooled_output"]
            - expected["pooled_output"]
        ).max()
        > 1e-3
    )
