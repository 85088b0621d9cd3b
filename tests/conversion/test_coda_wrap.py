import dataclasses
import fractions
import warnings

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion import registry
from keras_coda.conversion.unsupported import UNSUPPORTED
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import BERT
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
        ({"adapter_scale": "2"}, TypeError, "`adapter_scale` must be a num"),
        ({"adapter_scale": float("nan")}, ValueError, "adapter_scale=nan"),
        ({"adapter": "serial"}, ValueError, "sequential.*adapter='serial'"),
    ],
)
def test_bad_arguments(arguments, error, match):
    backbone = bert_backbone()
    with pytest.raises(error, match=match):
        keras_coda.coda_wrap(backbone, **arguments)
    # The backbone was not frozen by the attempt.
    assert len(backbone.trainable_weights) == len(backbone.weights)


@same_on_every_backend
def test_numbers_of_other_types_are_kept_in_files(tmp_path):
    coda = keras_coda.coda_wrap(
        bert_backbone(),
        reduction_factor=[np.float32(2.5), fractions.Fraction(7, 2)],
        adapter_dim=np.int64(2),
        shortcut_dim=np.int32(3),
        epsilon=np.float32(0.5),
        adapter_scale=np.float64(2),
    )
    coda.save(tmp_path / "coda.keras")
    loaded = keras.models.load_model(tmp_path / "coda.keras")
    assert loaded.reduction_factor == [2.5, 3.5]
    assert_close(predict(loaded, bert_inputs()), predict(coda, bert_inputs()))


@same_on_every_backend
def test_cloning_says_what_to_do_instead():
    coda = keras_coda.coda_wrap(bert_backbone(), adapter_dim=2)
    with pytest.raises(NotImplementedError, match="type.model..from_config"):
        keras.models.clone_model(coda)
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2)
    )
    with pytest.raises(NotImplementedError, match="type.task..from_config"):
        keras.models.clone_model(task)
    copy = type(task).from_config(task.get_config())
    copy.set_weights(task.get_weights())
    assert_close(predict(copy, bert_inputs()), predict(task, bert_inputs()))


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
    with pytest.raises(TypeError, match="must be a KerasHub backbone or task"):
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
    with pytest.raises(TypeError, match="GPT2Backbone is not among") as error:
        keras_coda.coda_wrap(backbone)
    assert "adding_a_family" in str(error.value)
    assert "ViTImageClassifier" in str(error.value)


def test_backbones_that_cannot_be_routed():
    for name in UNSUPPORTED:
        backbone_cls = getattr(keras_hub.models, name)
        assert backbone_cls not in registry.backbone_classes
    backbone = keras_hub.models.FNetBackbone(10, 1, 8, 16)
    with pytest.raises(TypeError, match="FNetBackbone cannot be.*Fourier"):
        keras_coda.coda_wrap(backbone)


def test_task_of_an_own_class(own_registry, tmp_path):
    class OwnTask(keras_hub.models.BertTextClassifier):
        pass

    task = OwnTask(bert_backbone(), num_classes=2)
    with pytest.raises(TypeError, match="BertMaskedLM.*register_task"):
        keras_coda.coda_wrap(task)
    keras_coda.conversion.register_task(OwnTask)
    coda = keras_coda.coda_wrap(task, reduction_factor=1)
    assert isinstance(coda, OwnTask)
    assert_close(predict(coda, bert_inputs()), predict(task, bert_inputs()))
    coda.save(tmp_path / "own.keras")
    loaded = keras.models.load_model(tmp_path / "own.keras", compile=False)
    assert type(loaded) is type(coda)
    with pytest.raises(TypeError, match="`task_cls` must be a subclass"):
        keras_coda.conversion.register_task(keras_hub.models.GPT2CausalLM)


def test_backbone_of_an_own_class(own_registry):
    class OwnBert(keras_hub.models.BertBackbone):
        pass

    backbone = OwnBert(**BERT)
    with pytest.raises(TypeError, match="subclass of BertBackbone.*OwnBert"):
        keras_coda.coda_wrap(backbone)
    # As the error says.
    family = keras_coda.models.CodaBertBackbone.family
    register_family = keras_coda.conversion.register_family
    register_family(dataclasses.replace(family, backbone=OwnBert))
    assert isinstance(keras_coda.coda_wrap(backbone), OwnBert)
    with pytest.raises(TypeError, match="`family.backbone` must be"):
        register_family(dataclasses.replace(family, backbone=keras.Model))
    missing = dataclasses.replace(family, backbone="FutureBackbone")
    assert register_family(missing) is None
    with pytest.raises(ImportError, match="a KerasHub, newer.*upgrade keras-h"):
        keras_coda.models.CodaFutureBackbone
    assert "FutureBackbone. Run" in str(keras_coda.supported_models())


def test_a_subclass_of_the_converted_class_changes_nothing():
    class Own(keras_coda.models.CodaBertBackbone):
        pass

    coda = keras_coda.coda_wrap(bert_backbone())
    assert type(coda) is keras_coda.models.CodaBertBackbone


def test_converted_task_around_a_dense_backbone():
    with pytest.raises(TypeError, match="`backbone` must be a model that"):
        keras_coda.models.CodaBertTextClassifier(bert_backbone(), num_classes=2)


def test_attention_can_be_changed():
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2)
    )
    randomize(task, seed=1)
    to_all = predict(task, bert_inputs())
    task.attention = "k_to_k"
    assert task.backbone.attention == "k_to_k"
    assert task.backbone.get_config()["attention"] == "k_to_k"
    to_k = predict(task, bert_inputs())
    assert np.abs(to_k - to_all).max() > 1e-3
    task.backbone.attention = "k_to_all"
    assert_close(predict(task, bert_inputs()), to_all)
    with pytest.raises(ValueError, match="`attention` must be one of"):
        task.attention = "k_to_n"


@pytest.mark.parametrize("name", ["adapter_dim", "router", "epsilon"])
def test_settings_that_cannot_be_changed(name):
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=2),
        adapter_dim=4,
    )
    assert task.adapter_dim == task.backbone.adapter_dim == 4
    for model in (task, task.backbone):
        with pytest.raises(AttributeError, match=f"coda_wrap.*{name}=2"):
            setattr(model, name, 2)


def warned(model):
    """Whether predicting warns of routers that were never fitted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        predict(model, bert_inputs())
    return any("routers of this model" in str(w.message) for w in caught)


@same_on_every_backend
def test_predicting_with_new_routers_warns_once(tmp_path):
    coda = keras_coda.coda_wrap(bert_backbone(), reduction_factor=1)
    assert not warned(coda)
    coda.reduction_factor = 4
    assert warned(coda)
    assert not warned(coda)

    calibrated = keras_coda.coda_wrap(bert_backbone())
    keras_coda.training.calibrate(
        calibrated, bert_inputs(), num_passes=2, verbose=0
    )
    assert not warned(calibrated)
    calibrated.save(tmp_path / "model.keras")
    assert not warned(keras.models.load_model(tmp_path / "model.keras"))
    # Nothing is learned.
    assert not warned(keras_coda.coda_wrap(bert_backbone(), router="first_k"))


def test_supported_models():
    models = keras_coda.supported_models()
    names = [model.backbone for model in models]
    assert names == sorted(names, key=str.lower)
    assert {"AlbertBackbone", "T5Backbone"} <= set(names)
    bert = models[names.index("BertBackbone")]
    assert bert.pinned == "[CLS]"
    # An example of a docstring may have registered one more in this process.
    tasks = [name for name in bert.tasks if hasattr(keras_hub.models, name)]
    known = ["BertMaskedLM", "BertTextClassifier", "BertTextEmbedder"]
    assert tasks == [name for name in known if hasattr(keras_hub.models, name)]
    assert "BertTextEmbedder" in str(models)


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


@slow_to_compile
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
