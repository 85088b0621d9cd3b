import keras
import numpy as np
import pytest

import keras_coda
from keras_coda.callbacks import ElasticReduction
from keras_coda.callbacks import ReductionSchedule
from keras_coda.layers import ConditionalTransformerBlock
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import predict
from tests.conversion.models import vit_backbone

SAMPLES = 10


class Recorder(keras.callbacks.Callback):
    """Notes the reduction factor of each step, and can interrupt `fit`."""

    def __init__(self, interrupt_at=None):
        super().__init__()
        self.interrupt_at = interrupt_at
        self.values = []

    def on_train_batch_end(self, batch, logs=None):
        assert np.isfinite(logs["loss"])
        self.values.append(self.model.reduction_factor)
        if len(self.values) == self.interrupt_at:
            raise KeyboardInterrupt


def make_model(reduction_factor=4, num_layers=1):
    coda = keras_coda.coda_wrap(
        vit_backbone(num_layers=num_layers), reduction_factor=reduction_factor
    )
    coda.compile(optimizer=keras.optimizers.SGD(0.0), loss="mse")
    return coda


def data():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(SAMPLES, 16, 16, 3)).astype("float32")
    return images, np.zeros((SAMPLES, 17, 16), "float32")


def fit(coda, callbacks, **kwargs):
    return coda.fit(
        *data(), batch_size=1, callbacks=callbacks, verbose=0, **kwargs
    )


def test_k_falls_linearly(capsys):
    coda = make_model()
    expected = predict(coda, data()[0])
    recorder = Recorder()
    schedule = ReductionSchedule(fraction=0.6, num_stages=3)
    fit(coda, [schedule, recorder])
    # k / n: 1, 0.75 and 0.5 for two steps each, then 0.25.
    np.testing.assert_allclose(
        1 / np.array(recorder.values), [1, 1, 0.75, 0.75, 0.5, 0.5] + [0.25] * 4
    )
    assert coda.reduction_factor == 4
    np.testing.assert_allclose(predict(coda, data()[0]), expected, rtol=1e-5)
    printed = capsys.readouterr().out
    assert "Step 0: training at reduction_factor=1 (1 of at most 4" in printed
    assert "Step 6: training at reduction_factor=4 (4 of at most 4" in printed


def test_the_loss_is_that_of_the_stage():
    coda = make_model()
    means = []
    recorder = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: means.append(logs["loss"]),
    )
    schedule = ReductionSchedule(fraction=0.5, num_stages=1, verbose=0)
    fit(coda, [schedule, recorder], shuffle=False)
    losses = []
    for reduction_factor, steps in [(1, slice(0, 5)), (4, slice(5, 10))]:
        coda.reduction_factor = reduction_factor
        outputs = predict(coda, data()[0])[steps]
        losses += [np.mean(output**2) for output in outputs]
    # Keras logs the mean of the epoch so far.
    expected = np.cumsum(losses) / np.arange(1, SAMPLES + 1)
    np.testing.assert_allclose(means, expected, rtol=1e-4)


@slow_to_compile
def test_each_block_has_its_own_target():
    coda = make_model([4, 2], num_layers=2)
    recorder = Recorder()
    schedule = ReductionSchedule(fraction=0.4, num_stages=2, verbose=0)
    fit(coda, [schedule, recorder])
    np.testing.assert_allclose(1 / np.array(recorder.values[2]), [0.625, 0.75])
    assert coda.reduction_factor == [4, 2]


@slow_to_compile
@pytest.mark.parametrize("interrupt_at", [1, 4])
def test_an_interrupt_leaves_the_target(interrupt_at):
    coda = make_model()
    expected = predict(coda, data()[0])
    schedule = ReductionSchedule(fraction=1.0, verbose=0)
    with pytest.raises(KeyboardInterrupt):
        fit(coda, [schedule, Recorder(interrupt_at)])
    assert coda.reduction_factor == 4
    np.testing.assert_allclose(predict(coda, data()[0]), expected, rtol=1e-5)
    # Another `fit` is not affected.
    recorder = Recorder()
    fit(coda, [recorder])
    assert recorder.values == [4] * SAMPLES


@slow_to_compile
def test_resumed_training_goes_on_at_its_stage(tmp_path):
    coda = make_model()
    callbacks = [
        ReductionSchedule(fraction=0.8, num_stages=4, verbose=0),
        keras.callbacks.BackupAndRestore(tmp_path / "backup"),
    ]
    interrupted = Recorder(interrupt_at=25)
    with pytest.raises(KeyboardInterrupt):
        fit(coda, [*callbacks, interrupted], epochs=5)
    resumed = Recorder()
    fit(make_model(), [*callbacks, resumed], epochs=5)
    # The third epoch was not finished; it begins again.
    np.testing.assert_allclose(
        1 / np.array(resumed.values),
        [0.625] * 10 + [0.4375] * 10 + [0.25] * 10,
    )


@pytest.mark.filterwarnings("ignore:Your input ran out of data:UserWarning")
def test_dataset_of_unknown_length():
    def generator():
        for image, target in zip(*data()):
            yield image[None], target[None]

    coda = make_model()
    with pytest.raises(ValueError, match="`steps_per_epoch` to `fit`, or"):
        coda.fit(generator(), callbacks=[ReductionSchedule()], verbose=0)
    recorder = Recorder()
    schedule = ReductionSchedule(0.5, num_stages=1, total_steps=10, verbose=0)
    coda.fit(generator(), callbacks=[schedule, recorder], verbose=0)
    assert recorder.values == [1] * 5 + [4] * 5


@pytest.mark.parametrize(
    "make, match",
    [
        (lambda: ReductionSchedule(fraction=1.5), "`fraction` must lie"),
        (lambda: ReductionSchedule(num_stages=0), "`num_stages` must be"),
        (lambda: ReductionSchedule(total_steps=-1), "total_steps=-1"),
        (lambda: ElasticReduction([]), "at least one number"),
        (lambda: ElasticReduction([0.5]), "at least 1"),
        (lambda: ElasticReduction([2], steps_per_stage=0), "steps_per_stage"),
    ],
)
def test_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_model_without_conditional_blocks():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="no `ConditionalTransformerBlock`"):
        model.fit(
            np.ones((2, 3)),
            np.ones((2, 1)),
            callbacks=[ReductionSchedule()],
            verbose=0,
        )


def test_elastic_reduction():
    coda = make_model()
    elastic = ElasticReduction([1, 2, 5], steps_per_stage=2)
    recorder = Recorder()
    fit(coda, [elastic, recorder], epochs=3)
    values = recorder.values
    assert set(values) == {1, 2, 5}
    assert values[::2] == values[1::2]
    assert coda.reduction_factor == 4
    again = Recorder()
    fit(coda, [elastic, again], epochs=3)
    assert again.values == values


@slow_to_compile
def test_sandwich():
    coda = make_model()
    recorder = Recorder()
    elastic = ElasticReduction([1, 2, 3, 5], sandwich=True)
    fit(coda, [elastic, recorder], epochs=3)
    values = recorder.values
    assert values[::3] == [5] * 10 and values[1::3] == [1] * 10
    assert {2, 3} <= set(values[2::3])


def test_several_reduction_factors_are_aligned():
    dense = vit_backbone(num_layers=1)
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    seen = []

    class Seen(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append((coda.reduction_factor, logs["hidden_error"]))

    keras_coda.training.align(
        coda,
        dense,
        data()[0],
        batch_size=SAMPLES,
        epochs=6,
        optimizer=keras.optimizers.SGD(0.0),
        callbacks=[ElasticReduction([1, 5], sandwich=True), Seen()],
        verbose=0,
    )
    errors = dict(seen)
    assert set(errors) == {1, 5}
    assert errors[1] < 1e-10 and errors[5] > 1e-4
    assert coda.reduction_factor == 4


@pytest.mark.skipif(
    keras.config.backend() == "torch", reason="compiles nothing here"
)
def test_each_reduction_factor_is_compiled_once(monkeypatch):
    traces = []
    route = ConditionalTransformerBlock.route

    def traced_route(block, *args, **kwargs):
        traces.append(block.reduction_factor)
        return route(block, *args, **kwargs)

    monkeypatch.setattr(ConditionalTransformerBlock, "route", traced_route)
    coda = make_model()
    # The first `fit` also traces the model to build it.
    fit(coda, [], epochs=1)
    counts = []
    for epochs in (2, 4):
        traces.clear()
        fit(coda, [ElasticReduction([1, 2, 5])], epochs=epochs)
        counts.append({value: traces.count(value) for value in (1, 2, 5)})
    assert min(counts[0].values()) > 0
    assert counts[0] == counts[1]
