"""Time and memory of one optimizer step, dense against CoDA.

    KERAS_BACKEND=jax python benchmarks/training_step.py --memory

Full fine-tuning, dense parallel adapters (r = 1) and CoDA take one step of Adam
in turn, in one process, each on a classifier over the same kind of backbone.
`--memory` adds the peak memory of a step over that of the loaded model, each
measured in a process of its own. Writes training_step-BACKEND.json and .md.

`--mode compiled` on TensorFlow mostly times dropout: XLA on a CPU draws random
numbers 20 times as slowly as TensorFlow's own kernel.
"""

import argparse
import json
import pathlib

import inference
import keras
import numpy as np
import timing

import keras_coda
from keras_coda.layers.conditional_transformer_block import ATTENTIONS


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", default="bert-512", help="default: %(default)s")
    add("--reduction-factors", default="2,4,8")
    add("--batch-size", type=int, help="default: each shape's own")
    add("--rounds", type=int, default=10, help="timed steps of each")
    add(
        "--mode",
        choices=("default", "compiled"),
        default="default",
        help="compiled: XLA on TensorFlow; Keras on PyTorch gains nothing",
    )
    add("--memory", action="store_true", help="measure peak memory")
    add("--measure-memory-of", help=argparse.SUPPRESS)
    timing.add_dtype(parser)
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="one small shape, once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.shapes, arguments.reduction_factors = "bert-128", "4"
        arguments.batch_size, arguments.rounds = 1, 1
    return arguments


def make_step(backbone, shape, arguments):
    """A function that takes one optimizer step of a classifier."""
    outputs = backbone.output
    if isinstance(outputs, dict):
        outputs = outputs.get(
            "pooled_output", next(iter(outputs.values()))[:, 0]
        )
    elif len(outputs.shape) == 3:
        outputs = outputs[:, 0]
    logits = keras.layers.Dense(2, name="logits")(outputs)
    model = keras.Model(backbone.input, logits)
    inference.compile_model(
        model,
        arguments,
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs = inference.make_inputs(backbone, shape)
    labels = np.zeros(shape.batch_size, "int32")
    return lambda: model.train_on_batch(inputs, labels)


def make_backbone(shape, attention, reduction_factor):
    # A dense one each, because conversion freezes what it converts.
    backbone = shape.make()
    if reduction_factor is None:
        return backbone
    if attention not in ATTENTIONS:
        attention = "k_to_all"
    return keras_coda.coda_wrap(
        backbone, reduction_factor=reduction_factor, attention=attention
    )


def run_shape(name, arguments):
    shape = inference.shape_of(name, arguments)
    keys = [("full fine-tuning", None), ("parallel adapter", 1)]
    keys += [
        (attention, float(reduction_factor))
        for attention in ATTENTIONS
        for reduction_factor in arguments.reduction_factors.split(",")
    ]
    steps = {
        key: make_step(make_backbone(shape, *key), shape, arguments)
        for key in keys
    }
    seconds = timing.interleave(steps, arguments.rounds, num_warmup=2)
    rows = []
    for key in keys:
        row = {
            "shape": name,
            "batch": shape.batch_size,
            "model": key[0],
            "r": key[1],
            "seconds": seconds[key],
            "speedup": seconds["parallel adapter", 1] / seconds[key],
        }
        if arguments.memory:
            row["peak MB"] = timing.peak_memory(
                __file__, [name, *key], *inference.setup_of(arguments, shape)
            )
        rows.append(row)
    return rows


def measure_memory(arguments):
    name, *key = json.loads(arguments.measure_memory_of)
    shape = inference.shape_of(name, arguments)
    step = make_step(make_backbone(shape, *key), shape, arguments)
    timing.print_peak_memory(step)


def main():
    arguments = parse_arguments()
    if arguments.measure_memory_of:
        measure_memory(arguments)
        return
    rows = []
    for name in arguments.shapes.split(","):
        rows += run_shape(name, arguments)
    table = timing.markdown_table(rows)
    print(table)
    path = timing.results_path("training_step", arguments)
    content = {
        "versions": timing.versions(),
        "dtype": arguments.dtype,
        "rows": rows,
    }
    timing.write_json(path, content)
    timing.write(path.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
