import importlib

import keras
import numpy as np
import pytest

import keras_coda
from keras_coda.training import aligner
from keras_coda.training.aligner import Aligner
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import WORDS
from tests.conversion.models import predict
from tests.conversion.models import text_classifier

SETTINGS = {"adapter_dim": 2, "shortcut_dim": 2, "verbose": 0}


def classifier():
    return text_classifier(num_layers=3)


def texts(size=32):
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=8)) for _ in range(size)]


@slow_to_compile
def test_from_texts_to_a_fast_task(capsys):
    dense = classifier()
    before = predict(dense, texts(8))
    fast, calibration = keras_coda.training.accelerate(
        dense, texts(), speedup=1.5, **{**SETTINGS, "verbose": 1}
    )
    assert type(fast).__name__ == "CodaBertTextClassifier"
    blocks = fast.backbone.conditional_blocks
    factors = [block.reduction_factor for block in blocks]
    assert factors == calibration.reduction_factor
    assert calibration.speedup >= 1.5
    assert "speedup of the encoder" in capsys.readouterr().out
    assert fast.predict(texts(8), verbose=0).shape == (8, 3)
    # The dense task is as it was, and the fast one is its dense one at r = 1.
    np.testing.assert_allclose(predict(dense, texts(8)), before, rtol=1e-5)


@slow_to_compile
def test_pairs_of_texts():
    coda = keras_coda.coda_wrap(classifier(), reduction_factor=2)
    pair = texts(), texts()[::-1]
    calibration = keras_coda.training.calibrate(
        coda, pair, num_passes=2, verbose=0
    )
    assert calibration.reduction_factor == [2, 2, 2]


@slow_to_compile
def test_training_that_does_harm_is_undone():
    errors = []
    for learning_rate in (0.0, 10.0):
        keras.utils.set_random_seed(0)
        fast, calibration = keras_coda.training.accelerate(
            classifier(),
            texts(),
            speedup=1.5,
            learning_rate=learning_rate,
            **SETTINGS,
        )
        errors.append(calibration.error)
        assert np.all(np.isfinite(predict(fast, texts(8))))
    assert errors[1] <= errors[0] * (1 + 1e-3)


@pytest.mark.parametrize("best", [1, 2])
@slow_to_compile
def test_the_epoch_with_the_smallest_objective_is_kept(best):
    seen = []

    def objective(coda):
        seen.append(predict(coda, texts(8)))
        return abs(len(seen) - 1 - best)  # Whatever it computes.

    fast, _ = keras_coda.training.accelerate(
        classifier(),
        texts(),
        speedup=1.5,
        batch_size=8,
        objective=objective,
        **SETTINGS,
    )
    # Calibrated, and after each of two epochs.
    assert len(seen) == 3
    assert np.any(seen[best - 1] != seen[best])
    np.testing.assert_allclose(predict(fast, texts(8)), seen[best], atol=1e-6)


@slow_to_compile
def test_all_inputs_are_trained_on_and_some_calibrated_on(monkeypatch):
    module = importlib.import_module("keras_coda.training.accelerate")
    monkeypatch.setattr(module, "NUM_CALIBRATED", 16)
    sizes, fit = {}, Aligner.fit

    def count_aligned(aligner, x, **arguments):
        sizes["aligned"] = sum(len(ids["token_ids"]) for ids, *_ in x)
        return fit(aligner, x, **arguments)

    class Calibrator(module.Calibrator):
        def __init__(self, coda, x, **arguments):
            sizes["calibrated"] = sum(len(ids["token_ids"]) for ids in x)
            super().__init__(coda, x, **arguments)

    monkeypatch.setattr(Aligner, "fit", count_aligned)
    monkeypatch.setattr(module, "Calibrator", Calibrator)
    module.accelerate(
        classifier(), texts(40), speedup=1.5, epochs=1, batch_size=8, **SETTINGS
    )
    # But for a batch that is held back.
    assert sizes == {"calibrated": 16, "aligned": 32}


def tagger():
    backbone = classifier().backbone
    states = backbone(backbone.input)["sequence_output"]
    return keras.Model(backbone.input, keras.layers.Dense(3)(states))


@slow_to_compile
@pytest.mark.parametrize("make", [classifier, tagger])
def test_what_is_reproduced_is_computed_once(monkeypatch, make):
    calls, targets = [], Aligner.targets

    def record(self, inputs):
        calls.append(inputs)
        return targets(self, inputs)

    monkeypatch.setattr(Aligner, "targets", record)
    inputs = classifier().preprocessor(texts())

    def accelerate():
        calls.clear()
        keras.utils.set_random_seed(0)
        return keras_coda.training.accelerate(
            make(),
            inputs,
            speedup=1.5,
            batch_size=8,
            are_logits=True,
            **SETTINGS,
        )

    fast, calibration = accelerate()
    # Four batches, of which one is held back.
    assert len(calls) == 3
    monkeypatch.setattr(aligner, "MAX_TARGET_BYTES", 0)
    same, calibration_too = accelerate()
    # Once to see how large they are, and in each step of two epochs.
    assert len(calls) % 6 == 1 and len(calls) > 6
    assert calibration.reduction_factor == calibration_too.reduction_factor
    for values in zip(fast.get_weights(), same.get_weights()):
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


@slow_to_compile
def test_bad_arguments():
    converted = keras_coda.coda_wrap(classifier())
    with pytest.raises(TypeError, match="must be a dense model"):
        keras_coda.training.accelerate(converted, texts())
    with pytest.raises(ValueError, match="`speedup` must be above 1"):
        keras_coda.training.accelerate(
            classifier(), texts(), speedup=1.0, **SETTINGS
        )
    with pytest.raises(ValueError, match="Language models alone"):
        keras_coda.training.accelerate(classifier(), texts(), prompt_length=2)
    with pytest.raises(ValueError, match="epochs=-1"):
        keras_coda.training.accelerate(classifier(), texts(), epochs=-1)
