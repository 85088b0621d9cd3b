"""Writes files of converted models, or reads them and checks the outputs.

Run as `python -m tests.conversion.cross_backend write|read FOLDER` under each
`KERAS_BACKEND`; `test_cross_backend.py` does.
"""

import pathlib
import sys

import keras
import keras_hub
import numpy as np

import keras_coda
from tests.conversion import models

FAMILIES = {
    "bert": (models.bert_backbone, models.bert_inputs),
    "t5": (models.t5_backbone, models.t5_inputs),
    "vit": (models.vit_backbone, models.vit_inputs),
}


def write(folder):
    for family, (make_backbone, make_inputs) in FAMILIES.items():
        coda = keras_coda.coda_wrap(make_backbone(), reduction_factor=[2, 3])
        for layer in coda.trained_layers():
            models.randomize(layer, seed=4)
        coda.save(folder / f"{family}.keras")
        coda.save_weights(folder / f"{family}.weights.h5")
        coda.save_to_preset(folder / family)
        coda.save_adapter(folder / f"{family}.safetensors")
        outputs = keras.tree.flatten(models.compute(coda, make_inputs()))
        np.savez(folder / f"{family}.npz", *outputs)


def read(folder):
    for family, (make_backbone, make_inputs) in FAMILIES.items():
        with np.load(folder / f"{family}.npz") as file:
            expected = [file[key] for key in file.files]
        whole = keras.models.load_model(folder / f"{family}.keras")
        preset = keras_hub.models.Backbone.from_preset(str(folder / family))
        weights = keras_coda.coda_wrap(make_backbone(seed=9), [2, 3])
        weights.load_weights(folder / f"{family}.weights.h5")
        adapter = keras_coda.coda_wrap(make_backbone())
        adapter.load_adapter(folder / f"{family}.safetensors")
        assert adapter.reduction_factor == [2, 3]
        for model in (whole, preset, weights, adapter):
            outputs = keras.tree.flatten(models.compute(model, make_inputs()))
            models.assert_close(outputs, expected, atol=1e-4)
            assert len(model.trainable_weights) == len(
                adapter.trainable_weights
            )


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
    print("done")
