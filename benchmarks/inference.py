"""Speed of inference, dense against CoDA, and how close it is to arithmetic.

    KERAS_BACKEND=jax python benchmarks/inference.py
    KERAS_BACKEND=torch python benchmarks/inference.py --shapes bert-512 --quick

Times the dense backbone, the dense parallel adapters (r = 1) and CoDA in turn,
in one process, and prints for each shape

- speedup: seconds of the parallel adapters / seconds of CoDA, medians;
- limit: the same ratio of the multiply-adds (`keras_coda.analysis.flops`);
- efficiency: speedup / limit. It can exceed 1: softmax, activation and whatever
  else is no matrix product also shrink with r, and count in no limit.

`--memory` adds the peak memory of a call, each measured in a process of its
own. Writes inference-BACKEND.json, .md and .png; a shape that is there already
from an earlier run with other `--shapes` is kept.
"""

import argparse
import json
import pathlib
from typing import NamedTuple

import keras
import keras_hub
import numpy as np
import timing

import keras_coda
from keras_coda.conversion.multiply_adds import count_block
from keras_coda.exporting.signature import named_model
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers import TransformerBlock
from keras_coda.layers.conditional_transformer_block import ATTENTIONS
from keras_coda.layers.set_reduction_factor import conditional_blocks


class Shape(NamedTuple):
    """A model, and what to feed it.

    Attributes:
        make: makes the dense model.
        length: tokens n, with a class token.
        batch_size: sequences in a batch.
    """

    make: object
    length: int
    batch_size: int


def bert():
    return keras_hub.models.BertBackbone(
        vocabulary_size=30522,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
    )


def t5():
    # T5 1.1 base, of which only the encoder is timed.
    return keras_hub.models.T5Backbone(
        vocabulary_size=32128,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=2048,
        key_value_dim=64,
        activation="gelu",
        use_gated_activation=True,
    )


def vit(size):
    return keras_hub.models.ViTBackbone(
        image_shape=(size, size, 3),
        patch_size=16,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        mlp_dim=3072,
    )


def paper_block():
    # Table 7 of the paper: multi-query attention and a gated network.
    block = TransformerBlock(
        num_heads=24,
        head_dim=128,
        num_key_value_heads=1,
        intermediate_dim=3968,
    )
    block.build((None, None, 1536))
    return block


SHAPES = {
    "bert-128": Shape(bert, 128, 32),
    "bert-512": Shape(bert, 512, 8),
    "t5-512": Shape(t5, 512, 8),
    "vit-224": Shape(lambda: vit(224), 14**2 + 1, 16),
    "vit-384": Shape(lambda: vit(384), 24**2 + 1, 8),
    "paper-4096": Shape(paper_block, 4096, 1),
}
# The paper reports its vision block at these.
PAPER_REDUCTION_FACTORS = (4, 8, 16, 32)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    add("--reduction-factors", default="2,3,4,5,8,16")
    add("--batch-size", type=int, help="default: each shape's own")
    add("--rounds", type=int, default=10, help="timed calls of each")
    add(
        "--mode",
        choices=("default", "compiled"),
        default="default",
        help="compiled: XLA on TensorFlow, torch.compile of what "
        "torch.export makes of the model on PyTorch",
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


def shape_of(name, arguments):
    shape = SHAPES[name]
    return shape._replace(batch_size=arguments.batch_size or shape.batch_size)


def reduction_factors_of(name, arguments):
    if name.startswith("paper"):
        return PAPER_REDUCTION_FACTORS
    return [float(r) for r in arguments.reduction_factors.split(",")]


def make_inputs(model, shape):
    """Random inputs, all real tokens; a decoder gets one."""
    rng = np.random.default_rng(0)

    def make(tensor, name):
        length = 1 if "decoder" in name else shape.length
        size = [shape.batch_size]
        size += [dim or length for dim in tensor.shape[1:]]
        if "mask" in name:
            return np.ones(size, "int32")
        if "segment" in name:
            return np.zeros(size, "int32")
        if "token" in name:
            return rng.integers(1, 1000, size).astype("int32")
        return rng.normal(size=size).astype("float32")

    if isinstance(model.input, dict):
        return {key: make(value, key) for key, value in model.input.items()}
    return make(model.input, "")


def make_model(dense, name, reduction_factor=None, attention="k_to_all"):
    """The dense model, or the converted one, which shares its weights."""
    if isinstance(dense, keras.Model):
        model = dense
        if reduction_factor is not None:
            model = keras_coda.coda_wrap(
                dense, reduction_factor=reduction_factor, attention=attention
            )
        if name.startswith("t5"):
            return named_model(model, "encoder_sequence_output")
        return model
    inputs = keras.Input((SHAPES[name].length, 1536))
    layer = dense
    if reduction_factor is not None:
        layer = ConditionalTransformerBlock(
            dense, reduction_factor=reduction_factor, attention=attention
        )
    return keras.Model(inputs, layer(inputs))


def limit(model, length):
    """The speedup over r = 1 that the multiply-adds allow."""
    if isinstance(model, keras_coda.CodaBackbone):
        return keras_coda.analysis.flops(model, length).ratio
    dense = coda = 0
    for block in conditional_blocks(model):
        at_1, at_r = (
            sum(count_block(block, length, r, block.attention).values())
            for r in (1, block.reduction_factor)
        )
        dense, coda = dense + at_1, coda + at_r
    return dense / coda


def make_candidates(dense, name, arguments):
    """The models to compare, by (attention, reduction factor)."""
    models = {
        ("dense", None): make_model(dense, name),
        ("parallel adapter", 1): make_model(dense, name, 1),
    }
    for attention in ATTENTIONS:
        for reduction_factor in reduction_factors_of(name, arguments):
            models[attention, reduction_factor] = make_model(
                dense, name, reduction_factor, attention
            )
    return models


def make_call(model, inputs, arguments):
    """A function that predicts `inputs`.

    On a GPU it leaves the outputs there, and returns when they are computed.
    """
    is_torch = keras.config.backend() == "torch"
    if is_torch and arguments.mode == "compiled":
        return call_of_torch(compiled_by_torch, model, inputs)
    if timing.device() != "cpu":
        if is_torch:
            return call_of_torch(lambda model, _: model, model, inputs)
        return call_of_jax(model, inputs)
    compile_model(model, arguments)
    return lambda: model.predict_on_batch(inputs)


def compile_model(model, arguments, **settings):
    jit_compile = arguments.mode == "compiled"
    # JAX always compiles.
    jit_compile = jit_compile or keras.config.backend() == "jax"
    model.compile(jit_compile=jit_compile, **settings)


def call_of_torch(compiled, model, inputs):
    import torch

    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    with torch.no_grad():
        function = compiled(model.eval(), inputs)
    return timing.compiled(function, inputs)


def compiled_by_torch(model, inputs):
    # Exported first: torch.compile breaks the graph at each Keras layer, and
    # gives up after eight of a kind.
    import torch

    return torch.compile(torch.export.export(model, (inputs,)).module())


def call_of_jax(model, inputs):
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    variables = (
        [v.value for v in model.trainable_variables],
        [v.value for v in model.non_trainable_variables],
    )

    def function(variables, inputs):
        outputs, _ = model.stateless_call(*variables, inputs, training=False)
        return outputs

    return timing.compiled(function, variables, inputs)


def run_shape(name, arguments):
    shape = shape_of(name, arguments)
    dense = shape.make()
    models = make_candidates(dense, name, arguments)
    inputs = make_inputs(models["dense", None], shape)
    seconds = timing.interleave(
        {
            key: make_call(model, inputs, arguments)
            for key, model in models.items()
        },
        arguments.rounds,
        num_warmup=2,
    )
    rows = []
    for key, model in models.items():
        attention, reduction_factor = key
        speedup = seconds["parallel adapter", 1] / seconds[key]
        row = {
            "shape": name,
            "batch": shape.batch_size,
            "model": attention,
            "r": reduction_factor,
            "seconds": seconds[key],
            "speedup": speedup,
            "limit": None,
            "efficiency": None,
        }
        if reduction_factor is not None:
            row["limit"] = limit(model, shape.length)
            row["efficiency"] = speedup / row["limit"]
        if arguments.memory:
            row["peak MB"] = timing.peak_memory(
                __file__, [name, *key], *setup_of(arguments, shape)
            )
        rows.append(row)
    return rows


# === Memory ===


def setup_of(arguments, shape):
    """The arguments for a process that measures memory."""
    return [
        f"--mode={arguments.mode}",
        f"--batch-size={shape.batch_size}",
        f"--dtype={arguments.dtype}",
    ]


def measure_memory(arguments):
    """What the process does that `timing.peak_memory` starts."""
    name, attention, reduction_factor = json.loads(arguments.measure_memory_of)
    shape = shape_of(name, arguments)
    if attention not in ATTENTIONS:
        attention = "k_to_all"
    model = make_model(shape.make(), name, reduction_factor, attention)
    inputs = make_inputs(model, shape)
    timing.print_peak_memory(make_call(model, inputs, arguments))


# === Results ===


def plot(rows, path):
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["shape"] for row in rows))
    figure = Figure(figsize=(5 * len(names), 4), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for panel, name in zip(panels, names):
        for color, attention in enumerate(ATTENTIONS):
            points = [
                row
                for row in rows
                if row["shape"] == name and row["model"] == attention
            ]
            r = [point["r"] for point in points]
            for kind, style in (("speedup", "o-"), ("limit", ":")):
                panel.plot(
                    r,
                    [point[kind] for point in points],
                    style,
                    color=f"C{color}",
                    label=f"{attention}, {kind}",
                )
        panel.set_title(name)
        panel.set_xlabel("reduction factor r")
        panel.set_ylabel("speedup over dense parallel adapters")
        panel.legend(fontsize="x-small")
    figure.savefig(path, dpi=80)


def main():
    arguments = parse_arguments()
    if arguments.measure_memory_of:
        measure_memory(arguments)
        return
    names = arguments.shapes.split(",")
    path = timing.results_path("inference", arguments)
    rows = []
    if path.exists():
        earlier = json.loads(path.read_text())["rows"]
        rows = [row for row in earlier if row["shape"] not in names]
    for name in names:
        timing.clear_session(arguments.dtype)
        new_rows = run_shape(name, arguments)
        print(timing.markdown_table(new_rows), flush=True)
        rows += new_rows
        content = {
            "versions": timing.versions(),
            "dtype": arguments.dtype,
            "rows": rows,
        }
        timing.write_json(path, content)
    timing.write(path.with_suffix(".md"), timing.markdown_table(rows))
    plot(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
