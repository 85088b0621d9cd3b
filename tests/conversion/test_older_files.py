"""Files that were written before families became data still load.

`tests/conversion/files` was written with JAX by the first commit of keras_coda
that had all three families (0.1.0, unreleased): of each a task as a `.keras`
file, a preset and an adapter file, and what the models computed.
"""

import pathlib

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.conversion import models

FILES = pathlib.Path(__file__).with_name("files")


def bert():
    return keras_hub.models.BertTextClassifier(
        models.bert_backbone(), num_classes=2
    )


def t5():
    return keras_hub.models.T5Seq2SeqLM(models.t5_backbone())


def vit():
    return keras_hub.models.ViTImageClassifier(
        models.vit_backbone(), num_classes=2
    )


FAMILIES = {
    "bert": (bert, models.bert_inputs()),
    "t5": (t5, models.t5_inputs()),
    "vit": (vit, models.vit_inputs()),
}


def check(model, name, inputs):
    """Compares what a task, or a backbone, computes with what it did."""
    with np.load(FILES / f"{name}.npz") as file:
        arrays = dict(file)
    task_outputs = arrays.pop("task")
    assert model.reduction_factor == [2, 3]
    backbone = getattr(model, "backbone", model)
    outputs = keras.tree.flatten(models.predict(backbone, inputs))
    models.assert_close(outputs, list(arrays.values()), atol=1e-4)
    if model is not backbone:
        # The inputs are tokens already.
        model.preprocessor = None
        models.assert_close(
            models.predict(model, inputs), task_outputs, atol=1e-4
        )


@same_on_every_backend
@pytest.mark.parametrize(
    "name",
    ["bert", pytest.param("t5", marks=models.needs("T5Seq2SeqLM")), "vit"],
)
def test_files(name):
    make, inputs = FAMILIES[name]
    task_cls = type(make())
    whole = keras.models.load_model(FILES / f"{name}.keras", compile=False)
    preset = str(FILES / name)
    adapted = keras_coda.coda_wrap(make(), adapter_dim=4, shortcut_dim=3)
    adapted.load_adapter(FILES / f"{name}.safetensors")
    for model in (
        whole,
        task_cls.from_preset(preset),
        keras_hub.models.Backbone.from_preset(preset),
        adapted,
    ):
        check(model, name, inputs)
