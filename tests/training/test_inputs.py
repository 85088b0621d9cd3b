"""What recipes without labels make of their inputs: what `fit` would."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf

import keras_coda
from keras_coda.training.inputs import make_batches
from keras_coda.training.inputs import preprocess
from tests.backend_helpers import slow_to_compile
from tests.backend_helpers import to_numpy
from tests.conversion import models

TEXTS = ["ships grain oil", "gold", "banks trade crops gold", "oil sugar"]
LABELS = np.array([0, 1, 2, 1])
SIZE = models.IMAGE_SIZE


class Texts(keras.utils.PyDataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        rows = slice(2 * index, 2 * index + 2)
        return np.array(TEXTS[rows]), LABELS[rows]


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays).batch(2)


def assert_same_rows(batches, expected):
    assert [len(keras.tree.flatten(batch)[0]) for batch in batches] == [2, 2]
    rows = keras.tree.map_structure(
        lambda *parts: np.concatenate(list(map(to_numpy, parts))), *batches
    )
    models.assert_close(rows, expected)


@pytest.mark.parametrize(
    "make_x",
    [
        lambda: TEXTS,
        lambda: np.array(TEXTS),
        lambda: dataset(TEXTS, LABELS),
        lambda: tf.data.Dataset.from_tensor_slices(TEXTS).batch(2),
        Texts,
        lambda: (list(batch) for batch in Texts()),
        lambda: (TEXTS[start : start + 2] for start in (0, 2)),
    ],
)
def test_texts(make_x):
    task = models.text_classifier()
    expected = task.preprocessor(TEXTS)
    assert_same_rows(make_batches(task, make_x(), 2), expected)


@pytest.mark.parametrize(
    "make_x",
    [
        lambda: (TEXTS, TEXTS[::-1]),
        lambda: dataset((TEXTS, TEXTS[::-1]), LABELS),
        lambda: dataset((TEXTS, TEXTS[::-1])),
    ],
)
def test_pairs_of_texts(make_x):
    task = models.text_classifier()
    # Without labels it would take the second texts for them.
    expected, _ = task.preprocessor((TEXTS, TEXTS[::-1]), y=LABELS)
    assert_same_rows(make_batches(task, make_x(), 2), expected)
    # For `fit`, which takes arrays and datasets.
    x = preprocess(task, make_x())
    assert_same_rows(make_batches(None, x, 2), expected)


def image_classifier(has_preprocessor=True):
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(
        keras_hub.layers.ViTImageConverter(
            image_size=(SIZE, SIZE), scale=1 / 127.5, offset=-1.0
        )
    )
    return keras_hub.models.ViTImageClassifier(
        models.vit_backbone(),
        num_classes=3,
        preprocessor=preprocessor if has_preprocessor else None,
    )


def make_images(size=4):
    shape = (size, SIZE, SIZE, 3)
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def test_images():
    task, images = image_classifier(), make_images()
    expected = task.preprocessor(images)
    np.testing.assert_allclose(expected, images / 127.5 - 1.0, atol=1e-5)
    for x in (images, dataset(images, LABELS)):
        assert_same_rows(make_batches(task, x, 2), expected)
        batches = make_batches(None, preprocess(task, x), 2)
        assert_same_rows(batches, expected)
    # Nobody else knows what is to be done with them.
    batches = make_batches(image_classifier(False), images, 2)
    assert_same_rows(batches, images)


def test_inputs_of_the_backbone_stay_as_they_are():
    task, inputs = models.text_classifier(), models.bert_inputs()
    inputs = keras.tree.map_structure(lambda x: x[[0, 1, 2, 0]], inputs)
    for x in (inputs, dataset(inputs, LABELS), dataset(inputs)):
        assert_same_rows(make_batches(task, x, 2), inputs)
        assert_same_rows(make_batches(None, preprocess(task, x), 2), inputs)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (None, TypeError, "x=None of type NoneType"),
        ("gold", TypeError, "a list of texts.* x='gold'"),
        ((texts for texts in [[]]), ValueError, "Received none"),
        ({"token_ids": [[1, 2]]}, ValueError, "must hold arrays"),
        (
            {"token_ids": np.ones((3, 2)), "padding_mask": np.ones((2, 2))},
            ValueError,
            r"shapes \[\(2, 2\), \(3, 2\)\]",
        ),
    ],
)
def test_bad_inputs(x, error, message):
    with pytest.raises(error, match=message):
        make_batches(models.text_classifier(), x, 2)


def test_inputs_without_an_end():
    class Endless(Texts):
        num_batches = None

    for x in (dataset(TEXTS, LABELS).repeat(), Endless()):
        with pytest.raises(ValueError, match="`x` must have an end"):
            make_batches(models.text_classifier(), x, 2)


@slow_to_compile
def test_images_are_preprocessed_once():
    images, errors = make_images(16), []
    preprocessed = to_numpy(image_classifier().preprocessor(images))
    for has_preprocessor, x in ((True, images), (False, preprocessed)):
        dense = image_classifier(has_preprocessor)
        dense.output_dense.kernel.assign(np.eye(models.HIDDEN_DIM, 3))
        keras.utils.set_random_seed(0)
        fast, calibration = keras_coda.training.accelerate(
            dense, x, 1.7, epochs=1, adapter_dim=1, shortcut_dim=1, verbose=0
        )
        history = keras_coda.training.align(fast, dense, x, verbose=0).history
        errors.append([calibration.error, *history["hidden_error"]])
    assert min(errors[0]) > 1e-4
    np.testing.assert_allclose(*errors, rtol=1e-3)
