import functools
import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_coda
from keras_coda.training import cost
from keras_coda.training.budget import Search
from keras_coda.training.observation import LEFT_OUT
from keras_coda.training.routing_regression import RoutingRegression
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict
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

calibrate = functools.partial(keras_coda.training.calibrate, verbose=0)


def many(inputs, times=20):
    """More inputs, in which the rows differ."""
    rng = np.random.default_rng(0)

    def extend(values):
        values = np.concatenate([values] * times)
        if np.issubdtype(values.dtype, np.floating):
            return values + rng.normal(size=values.shape).astype("float32")
        return values if values.max() <= 1 else rng.permuted(values, axis=1)

    return keras.tree.map_structure(extend, inputs)


@slow_to_compile
@pytest.mark.parametrize("family", ["bert", "t5", "vit"])
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
    explained = calibrate(coda, inputs, num_passes=2).blocks
    assert error() < 0.8 * before
    assert coda.reduction_factor == 3
    assert list(explained) == [b.name for b in coda.conditional_blocks]
    for values in explained.values():
        # Where one token is read, a block may have nothing to choose.
        assert 0 < values.get("router", 1) <= 1
        assert 0 < values["shortcut"] <= 1
    assert "router" in explained[coda.conditional_blocks[0].name]


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


@slow_to_compile
def test_shortcuts_are_those_of_least_squares():
    dense, inputs = bert_backbone(num_layers=1), many(bert_inputs())
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=2, shortcut_dim=HIDDEN_DIM
    )
    explained = calibrate(coda, inputs, ridge=0.01).blocks
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


@slow_to_compile
def test_rank_limits_the_shortcut():
    dense, inputs = bert_backbone(), many(bert_inputs())
    shares = []
    for rank in (1, 4, HIDDEN_DIM, 2 * HIDDEN_DIM):
        coda = keras_coda.coda_wrap(dense, shortcut_dim=rank)
        explained = calibrate(coda, inputs, num_passes=2).blocks
        shares.append([s["shortcut"] for s in explained.values()])
    for block in np.transpose(shares):
        assert block[0] < block[1] < block[2] == pytest.approx(block[3])


@slow_to_compile
def test_routers_find_the_tokens_that_matter():
    dense = bert_backbone(num_layers=2)
    inputs = many(bert_inputs(), times=60)

    def error(coda):
        target = predict(dense, inputs)["pooled_output"]
        output = predict(coda, inputs)["pooled_output"]
        return np.mean((output - target) ** 2)

    errors = []
    for seed in range(2):
        keras.utils.set_random_seed(seed)
        coda = keras_coda.coda_wrap(dense, reduction_factor=3, shortcut_dim=4)
        coda.conditional_blocks[1].reduction_factor = 1
        calibrate(coda, inputs)
        (kernel, *_) = [b.router.kernel for b in coda.conditional_blocks]
        calibrated = error(coda)
        kernel.assign(-kernel)
        opposite = error(coda)
        kernel.assign(np.random.default_rng(seed).normal(size=kernel.shape))
        errors.append((calibrated, error(coda), opposite))
    calibrated, random, opposite = np.mean(errors, axis=0)
    assert calibrated < random < opposite


def test_routing_regression_by_hand():
    rng = np.random.default_rng(0)
    num_passes, batch_size, n, dim = 4, 5, 6, 3
    hidden = rng.normal(size=(batch_size, n, dim))
    chosen = np.arange(n) < np.array([6, 6, 4, 5, 3])[:, None]
    routed = rng.random((num_passes, batch_size, n)) < 0.5
    routed &= chosen
    errors = rng.normal(size=(num_passes, batch_size))
    regression = RoutingRegression(dim)
    regression.ridge = 0.0
    for rows in (slice(0, 2), slice(2, None)):
        regression.add(
            hidden[rows], routed[:, rows], chosen[rows], errors[:, rows]
        )
    router = keras_coda.layers.TokenRouter()
    router.build((None, None, dim))
    correlation = regression.fit(router)

    features, targets, tokens = [], [], []
    for row in range(batch_size):
        real = hidden[row][chosen[row]]
        tokens.append(real - real.mean(axis=0))
        sums = [
            (hidden[row] - real.mean(axis=0))[routed[p, row]].sum(axis=0)
            for p in range(num_passes)
        ]
        features.append(sums - np.mean(sums, axis=0))
        targets.append(errors[:, row] - errors[:, row].mean())
    features, targets = np.concatenate(features), np.concatenate(targets)
    expected = -np.linalg.lstsq(features, targets, rcond=None)[0]
    scores = np.concatenate(tokens) @ expected
    np.testing.assert_allclose(
        np.array(router.kernel)[:, 0],
        0.25 * expected / np.sqrt(np.mean(scores**2)),
        rtol=1e-5,
    )
    expected_correlation = np.corrcoef(-features @ expected, targets)[0, 1]
    assert correlation == pytest.approx(expected_correlation)


@slow_to_compile
def test_blocks_that_attend_k_to_k_route_together(monkeypatch):
    observed = []

    def record(self, hidden, routed, chosen, errors):
        observed.append(routed & chosen)

    monkeypatch.setattr(RoutingRegression, "add", record)
    coda = keras_coda.coda_wrap(
        bert_backbone(), reduction_factor=2, attention="k_to_k"
    )
    calibrate(coda, many(bert_inputs()), num_passes=2)
    first, second = observed[:2]
    # Not the same in both passes, and not everything.
    assert not np.array_equal(first[0], first[1])
    assert np.array_equal(first, second)


@slow_to_compile
def test_routers_that_choose_nothing_are_kept():
    coda = keras_coda.coda_wrap(bert_backbone(), reduction_factor=[1, 3])
    kernels = [np.array(b.router.kernel) for b in coda.conditional_blocks]
    fitted = calibrate(coda, many(bert_inputs())).blocks
    # Behind the last block the pinned token alone is read.
    assert [list(values) for values in fitted.values()] == [["router"], []]
    first, second = (np.array(b.router.kernel) for b in coda.conditional_blocks)
    assert not np.array_equal(first, kernels[0])
    assert np.array_equal(second, kernels[1])
    assert coda.reduction_factor == [1, 3]
    # Truncation has no router to fit.
    coda = keras_coda.coda_wrap(bert_backbone(), router="first_k")
    fitted = calibrate(coda, many(bert_inputs())).blocks
    assert not any(fitted.values())


@slow_to_compile
def test_changes_routers_and_shortcuts_alone():
    coda = keras_coda.coda_wrap(bert_backbone(), shortcut_dim=2)
    randomize(coda)
    before = {weight.path: np.array(weight) for weight in coda.weights}
    calibrate(coda, many(bert_inputs()), observed="tokens")
    for weight in coda.weights:
        changed = not np.array_equal(np.array(weight), before[weight.path])
        assert changed == (
            "router" in weight.path or "shortcut" in weight.path
        ), weight.path


@slow_to_compile
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
        fitted = calibrate(coda, x, batch_size=24, observed="tokens").blocks
        assert all(list(values) == ["router"] for values in fitted.values())
        kernels.append(np.array(coda.conditional_blocks[0].router.kernel))
    np.testing.assert_allclose(*kernels, rtol=1e-3, atol=1e-5)


def test_bad_arguments():
    with pytest.raises(TypeError, match="`coda` must be .* `keras_coda.coda_w"):
        calibrate(bert_backbone(), bert_inputs())
    coda = keras_coda.coda_wrap(bert_backbone())
    with pytest.raises(ValueError, match="num_passes=1"):
        calibrate(coda, bert_inputs(), num_passes=1)
    for nothing in ([], {key: x[:0] for key, x in bert_inputs().items()}):
        with pytest.raises(ValueError, match="at least one input"):
            calibrate(coda, nothing)


def vit_of_idle_blocks(*idle):
    """A ViT, some of whose four blocks add nothing."""
    dense = vit_backbone(num_layers=4)
    for number in idle:
        for weight in (
            dense.get_layer("vit_encoder").encoder_layers[number].weights
        ):
            if "output" in weight.path or "dense_2" in weight.path:
                weight.assign(np.zeros(weight.shape))
    return dense


@pytest.mark.parametrize("observed", [None, "tokens"])
@slow_to_compile
def test_a_speedup_leaves_out_the_blocks_that_do_nothing(observed):
    dense = vit_of_idle_blocks(1, 3)
    coda = keras_coda.coda_wrap(dense, adapter_dim=1, shortcut_dim=1)
    # One batch: another size would be compiled for, too.
    inputs = many(vit_inputs(), times=10)
    calibration = calibrate(coda, inputs, speedup=1.5, observed=observed)
    factors = [block.reduction_factor for block in coda.conditional_blocks]
    assert factors == calibration.reduction_factor
    assert factors[::2] == [1, 1]
    assert min(factors[1::2]) > 1
    assert calibration.error < 1e-6
    assert calibration.speedup >= 1.5
    np.testing.assert_allclose(
        predict(coda, inputs), predict(dense, inputs), rtol=1e-4, atol=1e-4
    )
    assert "speedup of the encoder by arithmetic: 1." in str(calibration)


@slow_to_compile
def test_a_run_that_is_left_out_has_one_shortcut():
    dense = vit_of_idle_blocks(1, 2, 3)
    coda = keras_coda.coda_wrap(dense, adapter_dim=1, shortcut_dim=1)
    inputs = many(vit_inputs(), times=10)
    most = cost.Cost(coda, [17] * 4)
    speedup = most.speedup([1, LEFT_OUT, math.inf, math.inf])
    calibration = calibrate(coda, inputs, speedup=speedup, observed="tokens")
    assert coda.reduction_factor == [1, LEFT_OUT, math.inf, math.inf]
    assert calibration.speedup == pytest.approx(speedup)
    assert calibration.error < 1e-6
    assert str(calibration).count(" out ") == 3
    fitted = [list(values) for values in calibration.blocks.values()]
    assert ["shortcut" in values for values in fitted][1:3] == [True, False]


@slow_to_compile
def test_the_shortcut_of_a_run_does_what_all_its_blocks_do():
    coda = keras_coda.coda_wrap(
        bert_backbone(num_layers=3), adapter_dim=1, shortcut_dim=HIDDEN_DIM
    )
    inputs, errors = many(bert_inputs()), []
    for factors in ([1, LEFT_OUT, math.inf], [1, math.inf, math.inf]):
        coda.reduction_factor = factors
        errors.append(calibrate(coda, inputs, observed="tokens").error)
    assert errors[0] < 0.7 * errors[1]


@slow_to_compile
def test_a_speedup_in_seconds(monkeypatch):
    inputs = many(bert_inputs())
    coda = keras_coda.coda_wrap(bert_backbone(), adapter_dim=1, shortcut_dim=1)
    before = coda.get_weights()
    really_timed = []

    def seconds(models, batch):
        really_timed.extend(time_models(models[:2], batch))
        assert [x.reduction_factor for x in models[1:]] == [*cost.TIMED]
        return [1.0, 1.2, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2]

    time_models = cost.time_models
    monkeypatch.setattr(cost, "time_models", seconds)
    calibration = calibrate(coda, inputs, speedup=1.6, cost="seconds")
    assert min(really_timed) > 0
    assert 1.6 <= calibration.speedup < 2.5
    assert "speedup of the backbone on this machine: " in str(calibration)
    # Other models were timed.
    changed = [
        weight.path
        for weight, old in zip(coda.weights, before)
        if not np.array_equal(ops.convert_to_numpy(weight), old)
    ]
    assert changed
    assert all("router" in path or "shortcut" in path for path in changed)
    with pytest.raises(ValueError, match="cost='minutes'"):
        calibrate(coda, bert_inputs(), cost="minutes")


def test_seconds_of_blocks_add_up(monkeypatch):
    coda = keras_coda.coda_wrap(bert_backbone(num_layers=2), adapter_dim=1)
    seconds = [1.0, 1.2, 0.9, 0.7, 0.6, 0.5, 0.3, 0.2]
    monkeypatch.setattr(cost, "time_models", lambda *args: seconds)
    measured = cost.MeasuredCost(coda, [12, 12], bert_inputs())
    for factor, expected in zip(cost.TIMED, seconds[1:]):
        assert measured.total([factor] * 2) == pytest.approx(expected)
    # Each of the blocks has half of it.
    assert measured.total([1, math.inf]) == pytest.approx(0.7)
    assert measured.speedup([1, 2]) == pytest.approx(1 / 0.95)


@slow_to_compile
def test_what_is_read_decides():
    # A model around the backbone, and a task, whose one token is pooled.
    coda = keras_coda.coda_wrap(
        bert_backbone(num_layers=2), adapter_dim=1, shortcut_dim=2
    )
    inputs = many(bert_inputs(), times=30)
    factors = [
        calibrate(coda, inputs, speedup=1.5, observed=read).reduction_factor
        for read in (
            lambda x: coda(x)["pooled_output"],
            lambda x: coda(x)["sequence_output"],
        )
    ]
    # Of the last block, nothing else is read, or all is.
    assert factors[0][-1] > factors[1][-1]


@slow_to_compile
def test_a_speedup_out_of_reach():
    coda = keras_coda.coda_wrap(bert_backbone(), reduction_factor=2)
    for speedup in (1e6, 0.5):
        with pytest.raises(ValueError, match="all blocks left out.* times"):
            calibrate(coda, many(bert_inputs()), speedup=speedup)
        assert coda.reduction_factor == 2


@slow_to_compile
def test_an_interrupted_search_leaves_the_factors(monkeypatch):
    coda = keras_coda.coda_wrap(
        bert_backbone(), reduction_factor=[2, 3], adapter_dim=1
    )

    def interrupt(self, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibrate(coda, many(bert_inputs()), speedup=1.2)
    assert coda.reduction_factor == [2, 3]


@slow_to_compile
def test_trainable_weights_stay_trainable():
    coda = keras_coda.coda_wrap(bert_backbone(), shortcut_dim=2)
    before = [weight.path for weight in coda.trainable_weights]
    calibrate(coda, many(bert_inputs()), num_passes=2)
    assert [weight.path for weight in coda.trainable_weights] == before


def test_outputs_of_another_length_are_all_read():
    # Two distributions over 12 tokens, of which the last are padding.
    coda = keras_coda.coda_wrap(bert_backbone(), reduction_factor=3)
    randomize(coda)
    inputs = bert_inputs()
    inputs["padding_mask"][:, -4:] = 0

    def read(batch):
        states = coda(batch)["sequence_output"][..., :2]
        return keras.ops.transpose(states, (0, 2, 1))

    calibration = keras_coda.training.calibrate(
        coda, inputs, observed=read, are_logits=True, verbose=0
    )
    assert calibration.error > 0


def test_bad_observed():
    coda = keras_coda.coda_wrap(bert_backbone())
    with pytest.raises(ValueError, match="observed='words'"):
        calibrate(coda, bert_inputs(), observed="words")
    with pytest.raises(ValueError, match="no preprocessor"):
        calibrate(coda, ["a text"])
