"""How many parameters are trained, by CoDA and by what it is compared with.

    KERAS_BACKEND=torch python benchmarks/trainable_parameters.py

Counts the trained weights of backbones in the shapes of BERT base, T5 1.1 base
(without output embeddings) and ViT-B/16, without a task's head, at sizes that
the methods' papers use. LoRA is KerasHub's `enable_lora` on the query and value
projections: where these make heads, as in BERT and ViT, it has a first matrix
for each head, and trains the biases too. T5 takes no prefix. Writes
trainable_parameters.json and .md, the same on every backend.
"""

import argparse
import math
import pathlib

import inference
import timing

import keras_coda
from keras_coda.conversion import registry

LORA_RANK = 8
METHODS = {
    "full fine-tuning": None,
    f"LoRA, rank {LORA_RANK}": None,
    "prefix, 16 long": {"adapter": "prefix", "prefix_length": 16},
    "prefix, 200 long": {"adapter": "prefix", "prefix_length": 200},
    "sequential adapters, 64 wide": {"adapter": "sequential"},
    "parallel adapters and routers, 64 wide (CoDA)": {"adapter": "parallel"},
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--shapes", default="bert-512,t5-512,vit-224")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    add("--quick", action="store_true", help="one shape alone")
    return timing.parse_arguments(parser, shapes="bert-512")


def count(shape, method):
    """A model's trained parameters, part by part, and all that it has."""
    dense = inference.SHAPES[shape].make()
    family = registry.backbone_classes[type(dense)].family
    settings = METHODS[method]
    if settings is None:
        if method.startswith("LoRA"):
            dense.enable_lora(LORA_RANK, family.lora_layer_names)
        trained = sum(map(size, dense.trainable_weights))
        return {"other": trained}, dense.count_params()
    if settings["adapter"] == "prefix" and not family.takes_prefix:
        return {}, None
    coda = keras_coda.coda_wrap(dense, reduction_factor=1, **settings)
    summary = coda.trainable_summary(print_fn=lambda text: None)
    return summary.parts, coda.count_params()


def size(weight):
    return math.prod(weight.shape)


def rows_of(shape):
    for method in METHODS:
        parts, all_parameters = count(shape, method)
        if not parts:
            continue
        trained = sum(parts.values())
        yield {
            "shape": shape.partition("-")[0],
            "method": method,
            "trained": trained,
            "% of all": 100 * trained / all_parameters,
            **{
                f"of it {part}": parts.get(part)
                for part in ("adapters", "routers", "layer norms")
            },
        }


def main():
    arguments = parse_arguments()
    rows = [
        row for shape in arguments.shapes.split(",") for row in rows_of(shape)
    ]
    table = timing.markdown_table(rows)
    print(table)
    name = "trainable_parameters" + "-quick" * arguments.quick
    path = arguments.output / f"{name}.json"
    timing.write_json(path, {"versions": timing.versions(), "rows": rows})
    timing.write(path.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
