import keras
import numpy as np
import pytest
from keras import ops

import keras_coda
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import randomize
from tests.conversion.models import t5_backbone
from tests.conversion.models import t5_inputs
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs

MODELS = {
    "bert": (bert_backbone, bert_inputs),
    "t5": (t5_backbone, t5_inputs),
    "vit": (vit_backbone, vit_inputs),
}


def many(inputs, times=20):
    """More inputs, in which the rows differ."""
    rng = np.random.default_rng(0)

    def extend(values):
        values = np.concatenate([values] * times)
        if np.issubdtype(values.dtype, np.floating):
            return values + rng.normal(size=values.shape).astype("float32")
        return values if values.max() <= 1 else rng.permuted(values, axis=1)

    return keras.tree.map_structure(extend, inputs)


@pytest.mark.parametrize("family", sorted(MODELS))
def test_hidden_states_start_closer(family):
    make_backbone, make_inputs = MODELS[family]
    dense, inputs = make_backbone(), many(make_inputs())
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=3, shortcut_dim=HIDDEN_DIM
    )

    def error():
        return keras_coda.training.align(
            coda,
            dense,
            inputs,
            optimizer=keras.optimizers.SGD(0.0),
            verbose=0,
        ).history["hidden_error"][0]

    before = error()
    explained = keras_coda.training.calibrate(coda, inputs)
    assert error() < 0.8 * before
    assert coda.reduction_factor == 3
    assert list(explained) == [b.name for b in coda.conditional_blocks]
    for shares in explained.values():
        assert 0 < shares["router"] <= 1
        assert 0 < shares["shortcut"] <= 1


def ridge_regression(features, targets, ridge):
    """What a ridge regression predicts, by its augmented least squares."""
    mean, target_mean = features.mean(0), targets.mean(0)
    centred = features - mean
    dim = centred.shape[1]
    penalty = ridge * len(centred) * np.sum(centred.var(0)) / dim
    coefficients, *_ = np.linalg.lstsq(
        np.concatenate([centred, np.sqrt(penalty) * np.eye(dim)]),
        np.pad(targets - target_mean, [(0, dim), (0, 0)]),
        rcond=None,
    )
    return target_mean + centred @ coefficients


def test_values_are_those_of_least_squares():
    dense, inputs = bert_backbone(num_layers=1), many(bert_inputs())
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=2, shortcut_dim=HIDDEN_DIM
    )
    explained = keras_coda.training.calibrate(coda, inputs, ridge=0.01)
    (block,) = coda.conditional_blocks
    real = inputs["padding_mask"].astype(bool)
    real[:, 0] = False
    before = keras.Model(coda.input, block.input[0])
    hidden = before.predict(inputs, verbose=0)[real].astype("float64")
    after = dense.predict(inputs, verbose=0)["sequence_output"][real]
    update = after - hidden

    estimate = ridge_regression(hidden, update, 0.01)
    actual = ops.convert_to_numpy(
        ops.stop_gradient(block.shortcut(hidden.astype("float32")))
    )
    np.testing.assert_allclose(actual, estimate, rtol=1e-3, atol=1e-3)
    (shares,) = explained.values()
    left = np.sum((update - estimate) ** 2) / np.sum(update**2)
    assert shares["shortcut"] == pytest.approx(1 - left, abs=1e-4)

    size = np.linalg.norm(update - estimate, axis=1, keepdims=True)
    size = (size - size.mean()) / size.std()
    scores = ridge_regression(hidden, size, 0.01)
    actual = hidden @ np.array(block.router.kernel)
    np.testing.assert_allclose(actual - actual.mean(), scores, atol=1e-2)
    assert shares["router"] == pytest.approx(
        1 - np.mean((size - scores) ** 2), abs=1e-3
    )


def test_rank_limits_the_shortcut():
    dense, inputs = bert_backbone(), many(bert_inputs())
    shares = []
    for rank in (1, 4, HIDDEN_DIM, 2 * HIDDEN_DIM):
        coda = keras_coda.coda_wrap(dense, shortcut_dim=rank)
        explained = keras_coda.training.calibrate(coda, inputs)
        shares.append([s["shortcut"] for s in explained.values()])
    for block in np.transpose(shares):
        assert block[0] < block[1] < block[2] == pytest.approx(block[3])


def test_changes_routers_and_shortcuts_alone():
    coda = keras_coda.coda_wrap(bert_backbone(), shortcut_dim=2)
    randomize(coda)
    before = {weight.path: np.array(weight) for weight in coda.weights}
    keras_coda.training.calibrate(coda, many(bert_inputs()))
    for weight in coda.weights:
        changed = not np.array_equal(np.array(weight), before[weight.path])
        assert changed == (
            "router" in weight.path or "shortcut" in weight.path
        ), weight.path


def test_batches_of_an_iterable():
    inputs = many(bert_inputs())
    dense = bert_backbone()
    kernels = []
    for x in (
        inputs,
        [
            keras.tree.map_structure(lambda v: v[start : start + 24], inputs)
            for start in range(0, 60, 24)
        ],
    ):
        coda = keras_coda.coda_wrap(dense)
        explained = keras_coda.training.calibrate(coda, x)
        assert all(list(shares) == ["router"] for shares in explained.values())
        kernels.append(np.array(coda.conditional_blocks[1].router.kernel))
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-5)


def test_dense_model():
    with pytest.raises(TypeError, match="`coda` must be .* `keras_coda.coda_w"):
        keras_coda.training.calibrate(bert_backbone(), bert_inputs())
