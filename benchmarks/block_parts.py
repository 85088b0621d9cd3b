"""What a conditional block does beside the arithmetic of the frozen block.

    KERAS_BACKEND=jax python benchmarks/block_parts.py

Times, in turn and each compiled on its own (eagerly on PyTorch), the dense
block, the conditional block, and what the latter adds to the former: the
router, and its soft top-k and the sort of that alone, the gather of the routed
rows, the adapter and its two matrix products alone, and the addition of all to
the residual. All are less what a call that does nothing takes, which on a GPU
is more than some of them. One block in the shape of BERT base's. Writes
block_parts-BACKEND.json and .md.
"""

import argparse
import pathlib

import keras
import numpy as np
import timing
from keras import ops

import keras_coda
from keras_coda.ops import add_rows
from keras_coda.ops import gather_rows
from keras_coda.ops.soft_top_k import best_positions
from keras_coda.ops.soft_top_k import soft_top_k_and_best


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--length", type=int, default=512, help="tokens; default: %(default)s")
    add("--batch-size", type=int, default=8)
    add("--reduction-factor", type=float, default=4)
    add("--rounds", type=int, default=30, help="timed calls of each")
    timing.add_dtype(parser)
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="short, one sequence, once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.length, arguments.batch_size, arguments.rounds = 128, 1, 1
    return arguments


def make_blocks(inputs, reduction_factor):
    """A dense block with BERT base's heads, and the conditional one of it."""
    dense = keras_coda.layers.TransformerBlock(
        12, intermediate_dim=4 * inputs.shape[-1], gated=False
    )
    block = keras_coda.layers.ConditionalTransformerBlock(
        dense, reduction_factor=reduction_factor
    )
    block.build(inputs.shape)
    return dense, block


def make_parts(arguments, dim=768):
    """Functions to time, by name."""
    shape = (arguments.batch_size, arguments.length, dim)
    inputs = np.random.default_rng(0).normal(size=shape)
    inputs = ops.cast(inputs, keras.config.dtype_policy().compute_dtype)
    dense, block = make_blocks(inputs, arguments.reduction_factor)
    adapter = block.adapter
    _, indices = block.router(inputs)
    num_routed = indices.shape[1]
    scores = ops.cast(inputs[..., 0], "float32")
    rows = gather_rows(inputs, indices)

    def matmuls(inputs):
        for layer in (adapter.down, adapter.up):
            kernel = ops.cast(layer.kernel, inputs.dtype)
            inputs = ops.matmul(inputs, kernel)
        return inputs

    def add_to_residual(inputs, adapted, rows, indices):
        return add_rows(inputs + adapted, rows, indices)

    return {
        "nothing": timing.compiled(lambda inputs: inputs[:1, :1], inputs),
        "dense block": timing.compiled(dense, inputs),
        "conditional block": timing.compiled(block, inputs),
        "router": timing.compiled(block.router, inputs),
        "router, soft top-k": timing.compiled(
            lambda scores: soft_top_k_and_best(scores, num_routed), scores
        ),
        "router, its sort": timing.compiled(
            lambda scores: best_positions(scores, num_routed), scores
        ),
        "gather": timing.compiled(gather_rows, inputs, indices),
        "adapter": timing.compiled(adapter, inputs),
        "adapter, matrix products": timing.compiled(matmuls, inputs),
        "add to residual": timing.compiled(
            add_to_residual, inputs, inputs, rows, indices
        ),
    }


def main():
    arguments = parse_arguments()
    seconds = timing.interleave(
        make_parts(arguments), arguments.rounds, num_warmup=3
    )
    nothing = seconds.pop("nothing")
    seconds = {name: value - nothing for name, value in seconds.items()}
    adapter_rest = seconds["adapter"] - seconds["adapter, matrix products"]
    beside = [seconds[name] for name in ("router", "gather", "add to residual")]
    seconds["all but matrix products"] = sum(beside) + max(adapter_rest, 0)
    rows = [
        {
            "part": name,
            "milliseconds": 1000 * value,
            "% of dense block": 100 * value / seconds["dense block"],
        }
        for name, value in seconds.items()
    ]
    table = timing.markdown_table(rows)
    print(table)
    path = timing.results_path("block_parts", arguments)
    setup = {
        "length": arguments.length,
        "batch_size": arguments.batch_size,
        "reduction_factor": arguments.reduction_factor,
        "dtype": arguments.dtype,
        "milliseconds of nothing": 1000 * nothing,
    }
    content = {"versions": timing.versions(), "setup": setup, "rows": rows}
    timing.write_json(path, content)
    timing.write(path.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
