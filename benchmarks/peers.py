"""CoDA against other ways to make a Transformer cheaper to tune or to run.

    pip install -r benchmarks/peers-requirements.txt
    KERAS_BACKEND=torch python benchmarks/peers.py
    KERAS_BACKEND=jax python benchmarks/peers.py

On PyTorch, in one process and in turn, with random weights in the shape of BERT
base:

- Hugging Face BERT, its parallel adapters (`adapters`), and LoRA (`peft`) as
  trained and merged;
- KerasHub BERT, its LoRA, and CoDA at several reduction factors;
- the routed block of `colt5-attention` and ours around a dense block of the
  same width.

On every backend, soft top-k and selection, forward and backward: ours by both
solvers and a hard top-k; on PyTorch also `colt5_attention.coor_descent`, on JAX
`ott-jax`. Writes peers-BACKEND.json and .md.
"""

import argparse
import pathlib

import block_parts
import inference
import keras
import numpy as np
import timing
from keras import ops

import keras_coda
from keras_coda.ops.soft_top_k import soft_top_k_and_best

SOFT_TOP_K_SHAPES = ((32, 512), (8, 4096))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--length", type=int, default=512)
    add("--batch-size", type=int, default=2)
    add("--rounds", type=int, default=10, help="timed calls of each")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="short, one sequence, once")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.length, arguments.batch_size, arguments.rounds = 128, 1, 1
    return arguments


# === Models, on PyTorch ===


def hugging_face_models(arguments):
    import adapters
    import peft
    import torch
    import transformers

    token_ids = torch.randint(1, 1000, (arguments.batch_size, arguments.length))

    def bert():
        return transformers.BertModel(transformers.BertConfig()).eval()

    def call(model):
        def run():
            with torch.inference_mode():
                return model(token_ids)

        return run

    adapted = bert()
    adapters.init(adapted)
    adapted.add_adapter("parallel", config="par_bn")
    adapted.set_active_adapters("parallel")
    lora = peft.LoraConfig(r=8, target_modules=["query", "value"])
    merged = peft.get_peft_model(bert(), lora).merge_and_unload()
    return {
        "Hugging Face, dense": call(bert()),
        "Hugging Face, adapters par_bn": call(adapted),
        "Hugging Face, peft LoRA": call(peft.get_peft_model(bert(), lora)),
        "Hugging Face, peft LoRA merged": call(merged),
    }


def keras_models(arguments):
    shape = inference.Shape(
        inference.bert, arguments.length, arguments.batch_size
    )
    dense, lora = shape.make(), shape.make()
    lora.enable_lora(8)
    models = {
        "KerasHub, dense": dense,
        "KerasHub, enable_lora": lora,
        "keras_coda, r = 1": keras_coda.coda_wrap(dense, reduction_factor=1),
    }
    for attention in ("k_to_all", "k_to_k"):
        for reduction_factor in (4, 8):
            name = f"keras_coda, {attention}, r = {reduction_factor}"
            models[name] = keras_coda.coda_wrap(
                dense, reduction_factor=reduction_factor, attention=attention
            )
    inputs = inference.make_inputs(dense, shape)
    return {
        name: lambda model=model: model.predict_on_batch(inputs)
        for name, model in models.items()
    }


def routed_blocks(arguments, dim=768):
    """A block of CoLT5 and ours, both of which compute n / 4 tokens."""
    import colt5_attention
    import torch

    num_routed = arguments.length // 4
    colt5 = colt5_attention.ConditionalRoutedTransformerBlock(
        dim,
        num_heavy_attn_tokens_q=num_routed,
        num_heavy_attn_tokens_kv=arguments.length,
        num_heavy_ff_tokens=num_routed,
        heavy_dim_head=64,
        heavy_heads=12,
        heavy_ff_mult=4,
    ).eval()
    inputs = torch.randn(arguments.batch_size, arguments.length, dim)
    dense, block = block_parts.make_blocks(inputs, reduction_factor=4)
    return {
        "colt5-attention, routed block": block_parts.compiled(colt5, inputs),
        "keras_coda, dense block": block_parts.compiled(dense, inputs),
        "keras_coda, conditional block": block_parts.compiled(block, inputs),
    }


# === Soft top-k ===


def soft_top_ks(scores, k):
    """Functions from scores to the weights of the k best, by name."""

    def ours(solver):
        def select(scores):
            weights, best = soft_top_k_and_best(scores, k, solver=solver)
            return keras_coda.ops.gather_rows(weights, best)

        return select

    def then_select(soft_top_k):
        return lambda scores: ops.top_k(soft_top_k(scores), k)[0]

    functions = {
        "keras_coda, exact": ours("exact"),
        "keras_coda, coordinate descent": ours("coordinate_descent"),
        "hard top-k": then_select(lambda scores: scores),
    }
    backend = keras.config.backend()
    if backend == "torch":
        from colt5_attention import coor_descent

        functions["colt5-attention, coor_descent"] = then_select(
            lambda scores: coor_descent(scores, n_iters=20, k=k, eps=0.03)
        )
    if backend == "jax":
        from ott.tools import soft_sort

        functions["ott-jax, topk_mask"] = then_select(
            lambda scores: soft_sort.topk_mask(scores, axis=-1, k=k)
        )
    gradient = {
        "torch": _torch_gradient,
        "jax": _jax_gradient,
        "tensorflow": _tensorflow_gradient,
    }[backend]
    return {
        name: gradient(function, scores) for name, function in functions.items()
    }


def _torch_gradient(function, scores):
    import torch

    def run():
        s = torch.tensor(scores, requires_grad=True)
        function(s).square().sum().backward()
        return s.grad

    return run


def _jax_gradient(function, scores):
    import jax

    compiled = jax.jit(jax.grad(lambda s: (function(s) ** 2).sum()))
    return lambda: compiled(scores).block_until_ready()


def _tensorflow_gradient(function, scores):
    import tensorflow as tf

    scores = tf.constant(scores)

    @tf.function(jit_compile=True)
    def compiled():
        with tf.GradientTape() as tape:
            tape.watch(scores)
            loss = tf.reduce_sum(function(scores) ** 2)
        return tape.gradient(loss, scores)

    return lambda: compiled().numpy()


def compare(group, candidates, reference, num_rounds):
    seconds = timing.interleave(candidates, num_rounds, num_warmup=2)
    rows = [
        {
            "comparison": group,
            "what": name,
            "milliseconds": 1000 * value,
            "speed": seconds[reference] / value,
        }
        for name, value in seconds.items()
    ]
    print(timing.markdown_table(rows), flush=True)
    return rows


def main():
    arguments = parse_arguments()
    rows = []
    if keras.config.backend() == "torch":
        models = {**hugging_face_models(arguments), **keras_models(arguments)}
        rows += compare(
            f"BERT base, n = {arguments.length}",
            models,
            "Hugging Face, dense",
            arguments.rounds,
        )
        rows += compare(
            f"a block, n = {arguments.length}, r = 4",
            routed_blocks(arguments),
            "keras_coda, dense block",
            arguments.rounds,
        )
    for shape in SOFT_TOP_K_SHAPES:
        rng = np.random.default_rng(0)
        scores = rng.normal(size=shape).astype("float32")
        rows += compare(
            f"soft top-k and selection, {shape}, with gradient",
            soft_top_ks(scores, shape[1] // 4),
            "keras_coda, coordinate descent",
            5 * arguments.rounds,
        )
    path = timing.results_path("peers", arguments)
    timing.write_json(path, {"versions": timing.versions(), "rows": rows})
    timing.write(path.with_suffix(".md"), timing.markdown_table(rows))


if __name__ == "__main__":
    main()
