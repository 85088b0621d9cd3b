"""A saved task is loaded to go on where its training stopped."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.causal_models import CONFIG
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import compute

TARGETS = np.array([0, 2, 1])


def classifier():
    keras.utils.set_random_seed(0)
    return keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(
            bert_backbone(dropout=0.0), num_classes=3, dropout=0.0
        ),
        reduction_factor=2,
        adapter_dim=4,
    )


def fit(task):
    task.fit(bert_inputs(), TARGETS, batch_size=3, epochs=2, verbose=0)


def saved_and_loaded(task, folder):
    task.save(folder / "task.keras")
    return keras.models.load_model(folder / "task.keras")


@slow_to_compile
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path):
    task = classifier()
    task.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.ExponentialDecay(1e-2, 1, 0.9)
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    fit(task)
    loaded = saved_and_loaded(task, tmp_path)
    fit(task)
    fit(loaded)
    assert int(loaded.optimizer.iterations) == 4
    assert_close(
        compute(loaded, bert_inputs()), compute(task, bert_inputs()), 1e-5
    )


@same_on_every_backend
def test_a_task_that_was_not_trained_loads_silently(tmp_path):
    loaded = saved_and_loaded(classifier(), tmp_path)
    assert not loaded.optimizer.built
    fit(loaded)
    assert int(loaded.optimizer.iterations) == 2


@same_on_every_backend
def test_the_sampler_is_kept(tmp_path):
    backbone = keras_hub.models.LlamaBackbone(**CONFIG)
    dense = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    coda = keras_coda.coda_wrap(dense)
    coda.compile(sampler=keras_hub.samplers.TopPSampler(p=0.25))
    loaded = saved_and_loaded(coda, tmp_path)
    assert isinstance(loaded.sampler, keras_hub.samplers.TopPSampler)
    assert loaded.sampler.p == 0.25


@same_on_every_backend
def test_jit_compile_is_of_the_backend(tmp_path):
    task = classifier()
    default = task.jit_compile
    task.compile(jit_compile=not default)
    assert saved_and_loaded(task, tmp_path).jit_compile == default


@same_on_every_backend
def test_a_loss_that_is_not_known_is_said(tmp_path):
    def own_loss(targets, logits):
        return keras.ops.mean(logits)

    task = classifier()
    task.compile(loss=own_loss)
    with pytest.warns(UserWarning, match="Call `compile`.*own_loss"):
        loaded = saved_and_loaded(task, tmp_path)
    assert_close(
        compute(loaded, bert_inputs()), compute(task, bert_inputs()), 1e-5
    )
    loaded = keras.models.load_model(
        tmp_path / "task.keras", custom_objects={"own_loss": own_loss}
    )
    assert loaded.loss is own_loss
