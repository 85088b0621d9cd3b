"""Runs artefacts with what serves them alone; see `environment_without_keras`.

`python run_artefacts.py FOLDER` runs what `FOLDER/plan.json` lists: for each
artefact its format, and files of inputs to files of outputs.
"""

import json
import pathlib
import sys

import numpy as np


def load_saved_model(path):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    serve = loaded.signatures["serving_default"]

    def run(inputs):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        return serve(**tensors)

    # What is not referred to is collected, with its variables.
    run.loaded = loaded
    return run


def load_onnx(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs)))


def load_litert(path):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(path).get_signature_runner()
    return lambda inputs: runner(**inputs)


def load_torch(path):
    import torch

    module = torch.export.load(path).module()

    def run(inputs):
        tensors = {name: torch.tensor(value) for name, value in inputs.items()}
        outputs = module(tensors)
        return {name: value.detach() for name, value in outputs.items()}

    return run


LOADERS = {
    "tf_saved_model": load_saved_model,
    "onnx": load_onnx,
    "litert": load_litert,
    "torch": load_torch,
}


def main(folder):
    for entry in json.loads((folder / "plan.json").read_text()):
        run = LOADERS[entry["format"]](entry["path"])
        for inputs_path, outputs_path in entry["batches"]:
            with np.load(inputs_path) as file:
                outputs = run(dict(file))
            outputs = {k: np.asarray(value) for k, value in outputs.items()}
            np.savez(outputs_path, **outputs)
    print("done")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
