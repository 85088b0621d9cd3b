"""Converted models, what to feed them, and how their artefacts are checked.

`KERAS_BACKEND=jax python -m tests.exporting.artefacts` checks each cell of the
table in docs/exporting.md, which takes some minutes.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import keras_hub
import numpy as np

import keras_coda
from keras_coda.exporting.formats import FORMATS
from keras_coda.exporting.signature import named_model
from tests.conversion import models

RUNNER = pathlib.Path(__file__).with_name("run_artefacts.py")

# (batch size, sequence length), for any length and for 12 tokens.
ANY_LENGTH = ((1, 1), (3, 17), (2, 64))
FIXED_LENGTH = ((1, 12), (3, 12), (5, 12))

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"]
TEXTS = ["a fine film", "fine", "a dull film"]


def convert(model):
    """A converted model in which every weight matters."""
    coda = keras_coda.coda_wrap(model, reduction_factor=[2, 3])
    layers = list(getattr(coda, "backbone", coda).trained_layers())
    if hasattr(coda, "backbone"):
        # A fresh head gives so little that no error would be seen.
        layers.append(coda.output_dense)
    for layer in layers:
        models.randomize(layer, seed=4)
    return coda


def bert():
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer(vocabulary=WORDS), sequence_length=8
    )
    # Built with its first call. On JAX a model whose layers are not all built
    # runs eagerly first, whenever it predicts.
    preprocessor(TEXTS)
    return convert(
        keras_hub.models.BertTextClassifier(
            models.bert_backbone(),
            num_classes=3,
            preprocessor=preprocessor,
        )
    )


def t5():
    return convert(models.t5_backbone())


def vit():
    return convert(
        keras_hub.models.ViTImageClassifier(
            models.vit_backbone(), num_classes=3
        )
    )


def make_inputs(model, batch_size, length):
    """Random inputs, with padding in the last row."""
    rng = np.random.default_rng(0)
    inputs = {}
    for tensor in model.inputs:
        shape = (batch_size, *(dim or length for dim in tensor.shape[1:]))
        if tensor.name.endswith("mask"):
            value = np.ones(shape, "int32")
            value[-1, (length + 1) // 2 :] = 0
        elif tensor.name == "segment_ids":
            value = np.zeros(shape, "int32")
        elif tensor.name.endswith("ids"):
            value = rng.integers(1, models.VOCABULARY_SIZE, shape, "int32")
        else:
            value = rng.normal(size=shape).astype("float32")
        inputs[tensor.name] = value
    return inputs


def predict(model, inputs):
    """`model.predict` of a dict of inputs, as a dict of outputs."""
    if not isinstance(model.input, dict):
        (inputs,) = inputs.values()
    if getattr(model, "preprocessor", None) is not None:
        # The inputs are tokens already.
        preprocessor, model.preprocessor = model.preprocessor, None
        try:
            outputs = model.predict(inputs, verbose=0)
        finally:
            model.preprocessor = preprocessor
    else:
        outputs = model.predict(inputs, verbose=0)
    if isinstance(outputs, dict):
        return outputs
    return {model.output_names[0]: outputs}


def environment_without_keras(folder):
    """Variables of a process that can import neither Keras nor this library.

    `folder` is for modules that take their place and fail.
    """
    for name in ("keras", "keras_coda", "keras_hub", "tf_keras"):
        package = folder / "blocked" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ImportError('blocked')")
    return {**os.environ, "PYTHONPATH": str(folder / "blocked")}


class Checks:
    """Artefacts to run in one fresh process, and what they should give."""

    def __init__(self, folder):
        self.folder = folder
        self.plan = []
        self.expected = {}

    def export(self, model, name, format, sizes=(), inputs=None, **kwargs):
        """Exports a model, to be checked with batches of these sizes.

        Or with the one batch of `inputs`.
        """
        path = self.folder / f"{name}{FORMATS[format].suffix}"
        keras_coda.export(model, path, format, verbose=False, **kwargs)
        named = named_model(model, kwargs.get("outputs"))
        batches = []
        all_inputs = [make_inputs(model, *size) for size in sizes]
        if inputs is not None:
            if not isinstance(inputs, dict):
                inputs = {model.inputs[0].name: inputs}
            all_inputs.append(inputs)
        for number, inputs in enumerate(all_inputs):
            outputs = predict(model, inputs)
            inputs_path = self.folder / f"{name}-{number}-inputs.npz"
            outputs_path = self.folder / f"{name}-{number}-outputs.npz"
            np.savez(inputs_path, **{key: inputs[key] for key in named.input})
            batches.append((str(inputs_path), str(outputs_path)))
            self.expected[outputs_path] = {
                key: outputs[key] for key in named.output
            }
        self.plan.append(
            {"path": str(path), "format": format, "batches": batches}
        )

    def run(self):
        """Runs all in a fresh process and compares.

        Returns:
            The largest difference, by batch.
        """
        (self.folder / "plan.json").write_text(json.dumps(self.plan))
        process = subprocess.run(
            [sys.executable, str(RUNNER), str(self.folder)],
            env=environment_without_keras(self.folder),
            capture_output=True,
            text=True,
        )
        assert process.stdout.endswith("done\n"), process.stderr[-3000:]
        assert self.expected
        differences = {}
        for path, expected in self.expected.items():
            with np.load(path) as file:
                actual = dict(file)
            assert actual.keys() == expected.keys(), path.name
            for name, value in expected.items():
                # Deep stacks of random adapters have outputs in the thousands.
                atol = 1e-4 * max(1.0, np.abs(value).max())
                np.testing.assert_allclose(
                    actual[name], value, atol=atol, err_msg=path.name
                )
            differences[path.name] = max(
                np.abs(actual[name].astype("float64") - value).max()
                for name, value in expected.items()
            )
        return differences


def size_of(path):
    """Bytes of an artefact, a file or a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def main():
    """Checks all models in all formats; the tests check a part of it."""
    cells = {
        "bert": (bert, {}),
        "t5": (t5, {}),
        "t5-encoder": (t5, {"outputs": "encoder_sequence_output"}),
        "vit": (vit, {}),
    }
    for format, properties in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            checks = Checks(pathlib.Path(folder))
            for name, (make, kwargs) in cells.items():
                for length in (
                    (None, 12) if properties.dynamic_length else (12,)
                ):
                    label = f"{name}-{length or 'any-length'}"
                    sizes = FIXED_LENGTH if length else ANY_LENGTH
                    checks.export(
                        make(),
                        label,
                        format,
                        sizes,
                        sequence_length=length,
                        **kwargs,
                    )
                    print(f"{format} {label}: exported", flush=True)
            for name, error in checks.run().items():
                print(
                    f"{format} {name}: off by at most {error:.1e}", flush=True
                )


if __name__ == "__main__":
    main()
