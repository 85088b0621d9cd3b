"""How routers learn: solvers, epsilon, learning rates and starts.

    KERAS_BACKEND=torch python benchmarks/routers.py

MiniLM on pairs of Reuters documents (see quality_tasks.py) is fine-tuned with
dense parallel adapters once. From there, each row converts it and fine-tunes it
at the reduction factor, and the table says

- gradient: the share of the real tokens whose score has a gradient of at least
  1% of the largest in its sequence, for random gradients of the weights, before
  and after;
- kept: the share of the routed tokens that was routed before fine-tuning too;
- the test accuracy, before and after.

The routers of "largest updates" predict the size of the block's update of a
token, by ridge regression.

Needs the PyTorch backend, for its autograd. Writes routers.json and routers.md.
"""

import argparse
import pathlib

import keras
import numpy as np
import quality_tasks
import timing
import torch
from keras import ops

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training import observation
from keras_coda.training.inputs import make_batches
from keras_coda.training.least_squares import Moments
from keras_coda.training.least_squares import ridge_regression

EPSILONS = (0.03, 0.1, 0.3, 1.0)

# Name, settings of `coda_wrap`, and what else is different.
ROWS = [
    *(
        (f"{router}, epsilon {epsilon}", {"router": router, "epsilon": epsilon})
        for router in ("exact", "coordinate_descent")
        for epsilon in EPSILONS
    ),
    ("exact, epsilon 1 to 0.03", {"epsilon": 1.0}, {"anneal": True}),
    # The same weights from a larger kernel, which the same step changes less.
    ("exact, router's learning rate x 0.1", {"epsilon": 0.3}, {"scale": 10.0}),
    ("exact, router's learning rate x 10", {"epsilon": 0.003}, {"scale": 0.1}),
    ("exact, frozen router", {}, {"freeze": True}),
    ("exact, calibrated", {}, {"calibrate": True}),
    *(
        (f"exact, shortcut, {name}", {"shortcut_dim": 64}, options)
        for name, options in {
            "random": {"calibrate": True, "random_router": True},
            "largest updates": {"calibrate": True, "size": 1.0},
            "smallest updates": {"calibrate": True, "size": -1.0},
            "calibrated": {"calibrate": True},
        }.items()
    ),
    ("first_k", {"router": "first_k"}),
]


class AnnealEpsilon(keras.callbacks.Callback):
    """Lowers epsilon geometrically to its end, step by step."""

    def __init__(self, start, end, num_steps):
        super().__init__()
        self.start, self.ratio = start, end / start
        self.num_steps, self.step = num_steps, 0

    def on_train_batch_begin(self, batch, logs=None):
        # PyTorch runs eagerly: nothing has to be compiled again.
        progress = min(1.0, self.step / (0.7 * self.num_steps))
        for block in self.model.backbone.conditional_blocks:
            block.router.epsilon = self.start * self.ratio**progress
        self.step += 1


def block_inputs(coda, inputs):
    """What the router of each block reads."""
    blocks = coda.backbone.conditional_blocks
    hidden = [[] for _ in blocks]
    for batch in make_batches(coda, inputs, 64):
        with RoutingScope() as scope:
            coda.backbone(batch, training=False)
        for block, parts in zip(blocks, hidden):
            parts.append(observation.to_numpy(scope.record(block).hidden))
    return list(zip(blocks, map(np.concatenate, hidden)))


def gradient_share(coda, inputs):
    """Share of the real tokens that learn, averaged over the blocks."""
    shares = []
    generator = torch.Generator().manual_seed(0)
    for block, hidden in block_inputs(coda, inputs):
        router = block.router
        if router.kernel is None:
            return 0.0
        kernel = ops.convert_to_numpy(router.kernel)
        mask = inputs["padding_mask"][:, 1:].astype(bool)
        scores = torch.tensor((hidden @ kernel)[:, 1:, 0], requires_grad=True)
        k = router.routed_length(hidden.shape[1]) - 1
        weights = keras_coda.ops.soft_top_k(
            scores,
            k,
            epsilon=router.epsilon,
            solver=router.router,
            mask=mask,
        )
        _, best = torch.topk(scores.detach(), k)
        routed = torch.gather(weights, 1, best)
        upstream = torch.randn(routed.shape, generator=generator)
        (gradient,) = torch.autograd.grad((routed * upstream).sum(), scores)
        size = gradient.abs()
        counts = size >= 0.01 * size.amax(dim=1, keepdim=True)
        shares.append(float(counts.numpy()[mask].mean()))
    return float(np.mean(shares))


def is_routed(coda, inputs):
    weights = keras_coda.analysis.routing(coda, inputs).weights_by_position()
    return weights[:, :, 1:] > 0


def score_update_size(coda, inputs, sign):
    """Makes routers prefer large updates, or small ones with `sign=-1`."""
    blocks = coda.backbone.conditional_blocks
    moments = [Moments() for _ in blocks]
    for batch in make_batches(coda, inputs, 32):
        with observation.dense(blocks), RoutingScope() as scope:
            coda.backbone(batch, training=False)
        for block, sums in zip(blocks, moments):
            record = scope.record(block)
            hidden = observation.to_numpy(record.hidden)
            update = observation.to_numpy(record.outputs - record.inputs)
            update = update - observation.apply(block.adapter, hidden)
            size = np.linalg.norm(update, axis=-1, keepdims=True)
            chosen = observation.choosable(block, record)
            sums.add(hidden[chosen], size[chosen])
    for block, sums in zip(blocks, moments):
        _, mean, covariance, cross, squares = sums.normalized()
        kernel = ridge_regression(covariance, cross, 1e-3)
        kernel /= np.sqrt(float(squares[0] - mean[0] ** 2))
        block.router.kernel.assign(0.25 * sign * kernel)


def convert(task, start, settings, reduction_factor):
    coda = keras_coda.coda_wrap(
        task.make_dense(), reduction_factor=reduction_factor, **settings
    )
    for path, weight in trained_weights(coda).items():
        if path in start and "router" not in path:
            weight.assign(start[path])
    return coda


def run(task, start, settings, options, arguments):
    keras.utils.set_random_seed(0)
    inputs, labels = task.train
    coda = convert(task, start, settings, arguments.reduction_factor)
    sample = keras.tree.map_structure(lambda values: values[:256], inputs)
    routers = [block.router for block in coda.backbone.conditional_blocks]
    for router in routers if "scale" in options else ():
        router.kernel.assign(options["scale"] * router.kernel)
    for router in routers if "freeze" in options else ():
        router.trainable = False
    if options.get("calibrate"):
        random = [ops.convert_to_numpy(router.kernel) for router in routers]
        keras_coda.training.calibrate(coda, sample)
        if options.get("random_router"):
            for router, value in zip(routers, random):
                router.kernel.assign(value)
    if "size" in options:
        score_update_size(coda, sample, options["size"])
    result = {
        "gradient_before": gradient_share(coda, sample),
        "accuracy_before": quality_tasks.accuracy(coda, task),
    }
    before = is_routed(coda, sample)
    num_steps = arguments.second_epochs * -(-len(labels) // 32)
    callbacks = []
    if options.get("anneal"):
        callbacks.append(AnnealEpsilon(1.0, 0.03, num_steps))
    quality_tasks.compile_and_fit(
        coda,
        inputs,
        labels,
        arguments.second_epochs,
        32,
        arguments.learning_rate,
        seed=0,
        callbacks=callbacks,
    )
    after = is_routed(coda, sample)
    result["gradient_after"] = gradient_share(coda, sample)
    result["kept"] = float((before & after).sum() / before.sum())
    result["accuracy"] = quality_tasks.accuracy(coda, task)
    return result


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--train-size", type=int, default=1500)
    parser.add_argument("--test-size", type=int, default=2000)
    parser.add_argument("--sequence-length", type=int, default=64)
    parser.add_argument("--dense-epochs", type=int, default=3)
    parser.add_argument("--second-epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--reduction-factor", type=float, default=5.0)
    parser.add_argument("--dtype", default="mixed_bfloat16")
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=timing.RESULTS,
    )
    arguments = parser.parse_args()
    if keras.config.backend() != "torch":
        parser.error("run it with KERAS_BACKEND=torch")
    keras.config.set_dtype_policy(arguments.dtype)

    task = quality_tasks.TextTask(
        "pairs",
        train_size=arguments.train_size,
        test_size=arguments.test_size,
        sequence_length=arguments.sequence_length,
    )
    keras.utils.set_random_seed(0)
    dense = keras_coda.coda_wrap(task.make_dense(), reduction_factor=1)
    quality_tasks.compile_and_fit(
        dense, *task.train, arguments.dense_epochs, 32, 3e-3, seed=0
    )
    start = {
        path: ops.convert_to_numpy(weight)
        for path, weight in trained_weights(dense).items()
    }
    dense_accuracy = quality_tasks.accuracy(dense, task)
    results = {"dense": {"accuracy": dense_accuracy}}
    lines = [
        "| router | gradient before | after | kept | accuracy before | after |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| dense, before conversion | | | | | {dense_accuracy:.1%} |",
    ]
    print(*lines, sep="\n", flush=True)
    for name, settings, *options in ROWS:
        options = options[0] if options else {}
        result = run(task, start, settings, options, arguments)
        results[name] = result
        lines.append(
            "| {name} | {gradient_before:.1%} | {gradient_after:.1%} "
            "| {kept:.1%} | {accuracy_before:.1%} | {accuracy:.1%} |".format(
                name=name, **result
            )
        )
        print(lines[-1], flush=True)
    setup = {k: v for k, v in vars(arguments).items() if k != "output"}
    content = {
        "setup": setup,
        "versions": timing.versions(),
        "results": results,
    }
    timing.write_json(arguments.output / "routers.json", content)
    timing.write(arguments.output / "routers.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
