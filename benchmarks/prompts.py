"""Speed of language models that route their prompts.

    KERAS_BACKEND=jax python benchmarks/prompts.py
    KERAS_BACKEND=torch python benchmarks/prompts.py --shapes qwen --quick

Shapes of Llama 3.2 1B and Qwen 2.5 0.5B with fewer layers, random weights, one
prompt (`--batch-size`), float32 (`--dtype`). It times in turn, in one process,
KerasHub's dense model and the converted one:

- prefill: `generate` of one token, the time to the first token;
- decode: a further token, from `generate` of 1 + `--new-tokens`;
- training: `train_on_batch` where the prompt is 90% of the tokens.

Speedups are those over the converted model at r = 1. Its training step has all
logits (`prompt_length=0`); the row "r = 1, logits of the response" has not. The
limit is what multiply-adds allow in a prefill, whose last block computes keys
and values alone, also at r = 1. `--memory` adds the peak memory of a training
step over that of the loaded model, each measured in a process of its own.
Writes prompts-BACKEND.json and .md, and keeps what others measured of other
shapes and lengths.

`--products` times no model, but a prefill's products with its weights alone,
without attention: how much of their limit the machine gives. Writes
prompts-products-BACKEND.json and .md.
"""

import argparse
import json
import pathlib

import keras
import keras_hub
import numpy as np
import timing

import keras_coda
from keras_coda.conversion.multiply_adds import count_block
from keras_coda.conversion.multiply_adds import kernel_size

NUM_LAYERS = 4
# Below the vocabulary of any of the models.
NUM_IDS = 500
SHAPES = {
    "llama": (
        keras_hub.models.Llama3CausalLM,
        keras_hub.models.Llama3Backbone,
        {
            "vocabulary_size": 128256,
            "num_layers": NUM_LAYERS,
            "num_query_heads": 32,
            "num_key_value_heads": 8,
            "hidden_dim": 2048,
            "intermediate_dim": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "qwen": (
        keras_hub.models.QwenCausalLM,
        keras_hub.models.QwenBackbone,
        {
            "vocabulary_size": 151936,
            "num_layers": NUM_LAYERS,
            "num_query_heads": 14,
            "num_key_value_heads": 2,
            "hidden_dim": 896,
            "intermediate_dim": 4864,
            "tie_word_embeddings": True,
        },
    ),
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", default=",".join(SHAPES), help="default: %(default)s")
    add("--lengths", default="512,2048", help="of prompts")
    add("--reduction-factors", default="4,8", help="default: %(default)s")
    add("--batch-size", type=int, default=1)
    add("--new-tokens", type=int, default=32)
    add("--rounds", type=int, default=3, help="timed calls of each")
    add("--no-training", action="store_true", help="time no training step")
    add("--memory", action="store_true", help="of a training step")
    add("--measure-memory-of", help=argparse.SUPPRESS)
    add("--products", action="store_true", help="time products alone")
    timing.add_dtype(parser)
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="one short prompt, once")
    return timing.parse_arguments(
        parser,
        shapes="qwen",
        lengths="64",
        reduction_factors="4",
        new_tokens=2,
        rounds=1,
    )


def make_models(name, reduction_factors):
    """The dense model, and it converted, by what the table calls them."""
    task_cls, backbone_cls, config = SHAPES[name]
    dense = task_cls(backbone=backbone_cls(**config), preprocessor=None)
    models = {"dense": dense}
    for factor in (1, *reduction_factors):
        coda = keras_coda.coda_wrap(dense, reduction_factor=factor)
        models[f"r = {factor:g}"] = coda
    for model in models.values():
        model.compile(
            optimizer=keras.optimizers.SGD(1e-3),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            weighted_metrics=[],
            sampler="greedy",
        )
    return models


def generation(model, length, num_tokens, batch_size):
    """A function that generates so many tokens from each prompt."""
    rng = np.random.default_rng(0)
    width = length + num_tokens
    shape = batch_size, width
    inputs = keras.tree.map_structure(
        keras.ops.convert_to_tensor,
        {
            "token_ids": rng.integers(1, NUM_IDS, shape).astype("int32"),
            "padding_mask": np.broadcast_to(np.arange(width) < length, shape),
        },
    )
    generate = model.make_generate_function()
    return lambda: keras.ops.convert_to_numpy(
        generate(inputs, stop_token_ids=None)["token_ids"]
    )


def training(model, length, prompt_length, batch_size):
    """A function that does one training step."""
    model.prompt_length = prompt_length
    rng = np.random.default_rng(0)
    token_ids = rng.integers(1, NUM_IDS, (batch_size, length)).astype("int32")
    num_labels = length - max(prompt_length - 1, 0)
    inputs = {"token_ids": token_ids, "padding_mask": np.ones_like(token_ids)}
    # A float, because Keras returns what could not be computed as it is.
    return lambda: float(
        model.train_on_batch(inputs, token_ids[:, -num_labels:])
    )


def limit(coda, length):
    """The speedup of a prefill over r = 1 that multiply-adds allow."""
    *blocks, last = coda.backbone.conditional_blocks
    keys = length * kernel_size(*last.block.kernels().context)
    for block in blocks:
        block.prompt_length = None
    totals = [
        keys
        + sum(
            sum(count_block(block, length, factor, "k_to_all").values())
            for block in blocks
        )
        for factor in (1, last.reduction_factor)
    ]
    for block in blocks:
        block.prompt_length = 0
    return totals[0] / totals[1]


def run(name, length, arguments):
    """One record for each model."""
    batch_size = arguments.batch_size
    factors = list(map(float, arguments.reduction_factors.split(",")))
    models = make_models(name, factors)
    first, more = (
        timing.interleave(
            {
                key: generation(model, length, num_tokens, batch_size)
                for key, model in models.items()
            },
            arguments.rounds,
        )
        for num_tokens in (1, 1 + arguments.new_tokens)
    )
    steps = {}
    if not arguments.no_training:
        prompt_length = length * 9 // 10
        converted = {**models}
        del converted["dense"]
        candidates = {
            key: training(
                model,
                length,
                prompt_length if model.reduction_factor > 1 else 0,
                batch_size,
            )
            for key, model in converted.items()
        }
        steps = timing.interleave(candidates, arguments.rounds)
        # The same model at another length of the prompt is compiled anew.
        key = "r = 1, logits of the response"
        steps |= timing.interleave(
            {key: training(models["r = 1"], length, prompt_length, batch_size)},
            arguments.rounds,
        )
        models[key] = models["r = 1"]
    memory = {}
    if arguments.memory:
        for key in steps:
            factor = models[key].reduction_factor
            has_all = key == "r = 1"
            memory[key] = timing.peak_memory(
                __file__,
                [
                    name,
                    length,
                    factor,
                    0 if has_all else length * 9 // 10,
                    batch_size,
                ],
                f"--dtype={arguments.dtype}",
            )
    decode = {
        key: (more[key] - first[key]) / arguments.new_tokens for key in first
    }
    records = []
    for key, model in models.items():
        is_routed = key in first and key.startswith("r") and key != "r = 1"
        records.append(
            {
                "shape": name,
                "n": length,
                "model": key,
                "prefill, s": first.get(key),
                "prefill speedup": ratio(first, key),
                "limit": limit(model, length) if is_routed else None,
                "decode, s": decode.get(key),
                "decode speedup": ratio(decode, key),
                "training step, s": steps.get(key),
                "training speedup": ratio(steps, key),
                "training, MB": memory.get(key),
            }
        )
    return records


def measure_memory(candidate):
    name, length, factor, prompt_length, batch_size = json.loads(candidate)
    model = make_models(name, [factor])[f"r = {factor:g}"]
    timing.print_peak_memory(training(model, length, prompt_length, batch_size))


def run_products(name, length, arguments):
    """One record for each reduction factor, of products with weights alone."""
    config = SHAPES[name][2]
    dim, width = config["hidden_dim"], config["intermediate_dim"]
    group = config["num_query_heads"] // config["num_key_value_heads"]
    rng = np.random.default_rng(0)

    def random(*shape):
        return keras.ops.cast(
            rng.normal(size=shape) * dim**-0.5,
            keras.config.dtype_policy().compute_dtype,
        )

    layers = [
        {
            "keys_and_values": random(dim, 2 * dim // group),
            "queries": random(dim, dim),
            "heads": random(dim, dim),
            "gate": random(dim, width),
            "up": random(dim, width),
            "down": random(width, dim),
        }
        for _ in range(NUM_LAYERS)
    ]

    def prefill(layers, tokens, rows):
        kept = []
        *first, last = layers
        for layer in first:
            kept.append(keras.ops.matmul(tokens, layer["keys_and_values"]))
            for key in ("queries", "heads"):
                rows = keras.ops.matmul(rows, layer[key])
            gate, up = (
                keras.ops.matmul(rows, layer[key]) for key in ("gate", "up")
            )
            rows = keras.ops.matmul(keras.ops.silu(gate) * up, layer["down"])
        kept.append(keras.ops.matmul(tokens, last["keys_and_values"]))
        return kept, rows

    num_tokens = arguments.batch_size * length
    tokens = random(num_tokens, dim)
    factors = [1.0, *map(float, arguments.reduction_factors.split(","))]
    num_rows = {factor: int(num_tokens / factor) for factor in factors}
    seconds = timing.interleave(
        {
            factor: timing.compiled(prefill, layers, tokens, tokens[:rows])
            for factor, rows in num_rows.items()
        },
        arguments.rounds,
    )

    def multiply_adds(factor):
        for_rows = (NUM_LAYERS - 1) * (2 * dim**2 + 3 * dim * width)
        for_tokens = NUM_LAYERS * 2 * dim**2 // group
        return num_rows[factor] * for_rows + num_tokens * for_tokens

    records = []
    for factor in factors:
        speedup = seconds[1.0] / seconds[factor]
        limit = multiply_adds(1.0) / multiply_adds(factor)
        records.append(
            {
                "shape": name,
                "n": length,
                "r": f"{factor:g}",
                "seconds": seconds[factor],
                "speedup": speedup,
                "limit": limit,
                "efficiency": speedup / limit,
            }
        )
    return records


def ratio(seconds, key):
    return seconds["r = 1"] / seconds[key] if key in seconds else None


def main():
    arguments = parse_arguments()
    if arguments.measure_memory_of:
        measure_memory(arguments.measure_memory_of)
        return
    benchmark, measure = "prompts", run
    if arguments.products:
        benchmark, measure = "prompts-products", run_products
    path = timing.results_path(benchmark, arguments)
    setup = {
        "dtype": arguments.dtype,
        "batch_size": arguments.batch_size,
        "num_layers": NUM_LAYERS,
        "rounds": arguments.rounds,
    }
    for name in arguments.shapes.split(","):
        for length in map(int, arguments.lengths.split(",")):
            timing.clear_session(arguments.dtype)
            records = measure(name, length, arguments)
            table = timing.write_run(path, setup, records, ("shape", "n"))
    print(table)


if __name__ == "__main__":
    main()
