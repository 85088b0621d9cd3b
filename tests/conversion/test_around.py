"""Models of one's own around a backbone."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import backbone_of
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs


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


def make_image_model(scale, has_layers_in_front, cls=keras.Model):
    """A classifier of images that are to be multiplied by `scale`."""
    layers = [keras.layers.Rescaling(scale)] if has_layers_in_front else []
    # Augmentation is for training alone.
    layers = [keras.layers.RandomFlip(), *layers, vit_backbone()]
    initializer = keras.initializers.RandomNormal(seed=1)
    layers += [
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dense(3, kernel_initializer=initializer),
    ]
    # As the backbone calls its own.
    inputs = keras.Input((IMAGE_SIZE, IMAGE_SIZE, 3), name="images")
    if cls is keras.Sequential:
        return cls([inputs, *layers])
    outputs = inputs
    for layer in layers:
        outputs = layer(outputs)
    return cls(inputs, outputs)


@slow_to_compile
@pytest.mark.parametrize("cls", [keras.Model, keras.Sequential])
def test_layers_in_front_of_the_backbone(cls):
    images = vit_inputs()
    images = np.concatenate([images * scale for scale in (1.0, 0.5, 2.0, 0.7)])
    found = []
    for scale, model in (
        (1.0, make_image_model(0.25, True, cls)),
        (0.25, make_image_model(0.25, False)),
    ):
        keras.utils.set_random_seed(0)
        coda = keras_coda.coda_wrap(
            model, reduction_factor=[3, 1], adapter_dim=1, shortcut_dim=2
        )
        x = scale * images
        dense = predict(coda, x)
        calibration = keras_coda.training.calibrate(coda, x, verbose=0)
        errors = [calibration.error]
        for logits_weight in (0.0, 1.0):
            history = keras_coda.training.align(
                coda, model, x, logits_weight=logits_weight, verbose=0
            ).history
            errors += [history["loss"][0], history["hidden_error"][0]]
        chosen = keras_coda.training.calibrate(coda, x, 1.2, verbose=0)
        errors += [chosen.error, *chosen.reduction_factor]
        pretrained = keras_coda.training.pretrain(coda, x, verbose=0)
        errors += pretrained.history["loss"]
        found.append((dense, errors))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-5)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3)


def test_a_sequential_model():
    model, images = make_image_model(0.1, True, keras.Sequential), vit_inputs()
    coda = keras_coda.coda_wrap(model, reduction_factor=1)
    np.testing.assert_allclose(
        predict(coda, images), predict(model, images), atol=1e-5
    )
    with pytest.raises(TypeError, match="sequential one with an `Input`"):
        keras_coda.coda_wrap(
            keras.Sequential([keras.layers.Rescaling(0.1), vit_backbone()])
        )


@slow_to_compile
@pytest.mark.parametrize("has_dict", [False, True])
def test_inputs_of_other_names(has_dict):
    backbone, x = bert_backbone(), bert_inputs()
    mine = {
        name: keras.Input((None,), dtype="int32", name=f"my_{name}")
        for name in backbone.input
    }
    inputs = {x.name: x for x in mine.values()}
    data = {f"my_{name}": x[name] for name in mine}
    if not has_dict:
        inputs, data = list(inputs.values()), list(data.values())
    head = keras.layers.Dense(3, kernel_initializer="ones")
    model = keras.Model(inputs, head(backbone(mine)["sequence_output"]))
    plain = make_tagger(backbone)
    plain.layers[-1].set_weights(head.get_weights())
    errors = []
    for around, given in ((model, data), (plain, x)):
        coda = keras_coda.coda_wrap(around, reduction_factor=3, shortcut_dim=2)
        calibration = keras_coda.training.calibrate(coda, given, verbose=0)
        history = keras_coda.training.align(
            coda, around, given, target="fine_tuned", verbose=0
        ).history
        errors.append([calibration.error, *history["hidden_error"]])
    np.testing.assert_allclose(*errors, rtol=1e-3)


def test_two_calls_of_one_backbone():
    backbone = bert_backbone()
    calls = [
        {
            name: keras.Input((None,), dtype="int32", name=f"{name}_{number}")
            for name in backbone.input
        }
        for number in range(2)
    ]
    vectors = [backbone(inputs)["pooled_output"] for inputs in calls]
    model = keras.Model(calls, keras.layers.Dot(1)(vectors))
    x = [bert_inputs(), bert_inputs(lengths=(3, 12, 5))]
    coda = keras_coda.coda_wrap(model, reduction_factor=1)
    models = model, coda
    np.testing.assert_allclose(*(predict(m, x) for m in models), rtol=1e-4)
    for recipe in (
        lambda: keras_coda.training.calibrate(coda, x),
        lambda: keras_coda.training.align(coda, model, x),
    ):
        with pytest.raises(TypeError, match="calls its backbone 2 times"):
            recipe()


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
