"""What quantized frozen weights save, and what they cost.

    KERAS_BACKEND=torch python benchmarks/quantized.py

all-MiniLM-L6-v2 with adapters on the topics of Reuters R52. The frozen weights
are quantized after the adapters were trained, or before the conversion, so that
the adapters are trained on what was rounded. Each model is calibrated at r = 3
on texts without labels, or has adapters, routers and shortcuts of the model in
float, and is then measured at r = 1 and 3: memory of the weights, size of the
`.keras` file, test accuracy, how often it says what the model in float does,
and the seconds of `predict`, all models in turn. Writes quantized-BACKEND.json
and .md.
"""

import argparse
import pathlib
import tempfile
import warnings

import quality_tasks
import timing

# isort: split
import keras
import numpy as np

import keras_coda

LEARNING_RATE = 1e-3
SETTINGS = {"reduction_factor": 1, "adapter_dim": 64, "shortcut_dim": 64}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--train-size", type=int, default=600, help="default: %(default)s")
    add("--test-size", type=int, default=1000, help="default: %(default)s")
    add("--epochs", type=int, default=2, help="default: %(default)s")
    add("--length", type=int, default=64, help="tokens; default: %(default)s")
    add("--rounds", type=int, default=10, help="timed calls of each")
    add("--reduction-factor", type=float, default=3)
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="few texts, once")
    return timing.parse_arguments(
        parser, train_size=32, test_size=32, epochs=1, length=16, rounds=1
    )


def ways():
    """How to quantize, by what the tables call it."""
    weights = keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)
    return {
        "int8": {"mode": "int8"},
        "int8, weights alone": {"config": weights},
        "int4": {"mode": "int4"},
    }


def make_models(task, arguments, folder):
    """Trained and calibrated classifiers, by name, the one in float first."""
    path = folder / "adapter.safetensors"
    models = {"float32": trained(task, arguments)}
    models["float32"].save_adapter(path)
    for name, way in ways().items():
        model = keras_coda.coda_wrap(task.make_dense(), **SETTINGS)
        model.load_adapter(path)
        model.quantize(**way)
        models[f"{name}, after"] = model
    for name, way in ways().items():
        models[f"{name}, before"] = trained(task, arguments, way)
    return models


def trained(task, arguments, way=None):
    """A classifier that is trained at r = 1 and calibrated."""
    dense = task.make_dense()
    if way is not None:
        with warnings.catch_warnings():
            # Of each layer that cannot be.
            warnings.simplefilter("ignore", UserWarning)
            dense.backbone.quantize(**way)
    keras.utils.set_random_seed(0)
    model = keras_coda.coda_wrap(dense, **SETTINGS)
    quality_tasks.compile_and_fit(
        model, *task.train, arguments.epochs, 32, LEARNING_RATE, seed=0
    )
    model.reduction_factor = arguments.reduction_factor
    keras_coda.training.calibrate(model, task.unlabelled, verbose=0)
    return model


def sizes(model, path):
    """Megabytes of the weights, and of a file without an optimizer's."""
    size = sum(weight.numpy().nbytes for weight in model.weights)
    # Compiled anew.
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    copy.save(path)
    return {"weights, MB": size / 1e6, "file, MB": path.stat().st_size / 1e6}


def classes(model, inputs):
    logits = model.predict(inputs, batch_size=64, verbose=0)
    return np.argmax(logits, axis=-1)


def measure(models, task, arguments, folder):
    """The rows of the table."""
    inputs, labels = task.test
    batch = {name: value[:32] for name, value in inputs.items()}
    found = {
        name: sizes(model, folder / "model.keras")
        for name, model in models.items()
    }
    rows = []
    for reduction_factor in (1, arguments.reduction_factor):
        for model in models.values():
            model.reduction_factor = reduction_factor
        answers = {name: classes(models[name], inputs) for name in models}
        seconds = timing.interleave(
            {
                name: lambda model=model: model.predict_on_batch(batch)
                for name, model in models.items()
            },
            arguments.rounds,
        )
        for name, answer in answers.items():
            rows.append(
                {
                    "frozen weights": name,
                    "r": reduction_factor,
                    **found[name],
                    "accuracy": 100 * float(np.mean(answer == labels)),
                    "as float32": 100
                    * float(np.mean(answer == answers["float32"])),
                    "ms": 1000 * seconds[name],
                }
            )
    return rows


def main():
    arguments = parse_arguments()
    task = quality_tasks.TextTask(
        "topics",
        train_size=arguments.train_size,
        test_size=arguments.test_size,
        unlabelled_size=256,
        sequence_length=arguments.length,
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        models = make_models(task, arguments, folder)
        rows = measure(models, task, arguments, folder)
    table = timing.markdown_table(rows)
    print(table)
    path = timing.results_path("quantized", arguments)
    setup = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("output", "quick")
    }
    content = {"versions": timing.versions(), "setup": setup, "rows": rows}
    timing.write_json(path, content)
    timing.write(path.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
