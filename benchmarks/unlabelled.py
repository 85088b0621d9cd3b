"""What training without labels gives: alignment against masked LM.

    KERAS_BACKEND=torch python benchmarks/unlabelled.py

Converts MiniLM and trains it without labels on documents of Reuters R52, by
alignment to the dense model and by masked language modelling, for the same
number of steps. After each epoch it measures

- hidden error: of the hidden states, relative to the dense model's;
- probe: the test accuracy of a linear classifier of the 52 topics on the frozen
  model's pooled output.

Writes unlabelled.json, .md and .png.
"""

import argparse
import pathlib

import keras
import quality_tasks
import timing

import keras_coda

METHODS = {
    "align": {},
    "align, calibrated shortcuts": {"shortcut_dim": 64},
    "masked LM": {},
}


def probe(backbone, task):
    """Test accuracy, in percent, of a linear classifier on the outputs."""
    parts = []
    for inputs, labels in (task.train, task.test):
        outputs = backbone.predict(inputs, batch_size=64, verbose=0)
        parts.append((outputs["pooled_output"], labels))
    keras.utils.set_random_seed(0)
    head = keras.Sequential([keras.layers.Dense(task.num_classes)])
    head.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    head.fit(*parts[0], epochs=30, verbose=0)
    return (
        100 * head.evaluate(*parts[1], verbose=0, return_dict=True)["accuracy"]
    )


def hidden_error(coda, dense, task):
    history = keras_coda.training.align(
        coda,
        dense,
        keras.tree.map_structure(lambda values: values[:256], task.test[0]),
        optimizer=keras.optimizers.SGD(0.0),
        verbose=0,
    )
    return history.history["hidden_error"][0]


class Record(keras.callbacks.Callback):
    def __init__(self, measure):
        super().__init__()
        self.measure = measure
        self.points = [measure()]

    def on_epoch_end(self, epoch, logs=None):
        self.points.append(self.measure())
        print(self.points[-1], flush=True)


def run(method, task, arguments):
    keras.utils.set_random_seed(0)
    dense = task.make_dense().backbone
    coda = keras_coda.coda_wrap(
        dense,
        reduction_factor=arguments.reduction_factor,
        **METHODS[method],
    )
    if coda.shortcut_dim is not None:
        keras_coda.training.calibrate(
            coda,
            keras.tree.map_structure(lambda v: v[:384], task.unlabelled),
        )
    record = Record(
        lambda: {
            "probe": probe(coda, task),
            "hidden error": hidden_error(coda, dense, task),
        }
    )
    fit_arguments = {
        "optimizer": quality_tasks.make_optimizer(
            arguments.learning_rate, len(task.raw), arguments.epochs, 32
        ),
        "epochs": arguments.epochs,
        "batch_size": 32,
        "callbacks": [record],
        "verbose": 0,
    }
    if method == "masked LM":
        keras_coda.training.pretrain(
            coda,
            task.raw,
            tokenizer=task.tokenizer,
            sequence_length=arguments.sequence_length,
            reduction_factor=arguments.reduction_factor,
            **fit_arguments,
        )
    else:
        keras_coda.training.align(coda, dense, task.unlabelled, **fit_arguments)
    return record.points


def plot(curves, dense_probe, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, quantity in zip(panels, ("probe", "hidden error")):
        for method, points in curves.items():
            panel.plot([point[quantity] for point in points], label=method)
        panel.set_xticks(range(len(points)))
        panel.set_xlabel("epochs without labels")
        panel.set_ylabel(quantity)
    panels[0].axhline(dense_probe, color="gray", linestyle=":", label="dense")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=80)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--train-size", type=int, default=1500)
    add("--test-size", type=int, default=1000)
    add("--sequence-length", type=int, default=64)
    add("--epochs", type=int, default=6, help="without labels")
    add("--learning-rate", type=float, default=1e-3)
    add("--reduction-factor", type=float, default=3.0)
    add("--dtype", default="mixed_bfloat16")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    arguments = parser.parse_args()
    keras.config.set_dtype_policy(arguments.dtype)
    task = quality_tasks.TextTask(
        "topics",
        train_size=arguments.train_size,
        test_size=arguments.test_size,
        unlabelled_size=arguments.train_size,
        sequence_length=arguments.sequence_length,
    )
    dense_probe = probe(task.make_dense().backbone, task)
    curves = {}
    for method in METHODS:
        print(method, flush=True)
        curves[method] = run(method, task, arguments)
    setup = {k: v for k, v in vars(arguments).items() if k != "output"}
    content = {
        "setup": setup,
        "versions": timing.versions(),
        "dense probe": dense_probe,
        "curves": curves,
    }
    path = arguments.output / "unlabelled.json"
    timing.write_json(path, content)
    rows = [
        {"training": method, "epochs": epoch, **point}
        for method, points in curves.items()
        for epoch, point in enumerate(points)
    ]
    rows.append(
        {
            "training": "dense model",
            "epochs": 0,
            "probe": dense_probe,
            "hidden error": 0.0,
        }
    )
    timing.write(path.with_suffix(".md"), timing.markdown_table(rows))
    plot(curves, dense_probe, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
