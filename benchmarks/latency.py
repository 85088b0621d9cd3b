"""Seconds of a request to BERT base, by all that can answer it.

    python benchmarks/latency.py
    python benchmarks/latency.py --quick

A classifier, dense and converted at r = 1, 4 and 8, is asked by `predict` on
each backend, compiled or not, and as exported artefacts: a SavedModel, ONNX
Runtime in float32 and in int8 (ONNX Runtime's own dynamic quantization of the
weights of matrix products), LiteRT and PyTorch's `.pt2`. Each runtime is a
process of its own that holds its models, and all are asked in turn, so that a
slow moment hits all of them. All at 512 tokens in batches of 8 take more than
20 GB of memory; `--runtimes` chooses. They have all cores. Artefacts have one
sequence length and any batch size.

Efficiency is the speedup over r = 1, as a share of what multiply-adds allow.
Writes latency.json and .md.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import rich.progress

REDUCTION_FACTORS = (1, 4, 8)
MODELS = ("dense", *map(str, REDUCTION_FACTORS))


class Runtime(NamedTuple):
    """What answers.

    Attributes:
        backend: of Keras, or `None` where an artefact is run.
        format: of the artefact.
        is_compiled: whether `jit_compile=True`.
        is_int8: whether the artefact is quantized.
    """

    backend: str | None = None
    format: str | None = None
    is_compiled: bool = False
    is_int8: bool = False


RUNTIMES = {
    "predict, PyTorch": Runtime("torch"),
    "predict, PyTorch, compiled": Runtime("torch", is_compiled=True),
    "predict, TensorFlow": Runtime("tensorflow"),
    "predict, TensorFlow, compiled": Runtime("tensorflow", is_compiled=True),
    "predict, JAX, compiled": Runtime("jax", is_compiled=True),
    "SavedModel": Runtime(format="tf_saved_model"),
    "ONNX Runtime": Runtime(format="onnx"),
    "ONNX Runtime, int8": Runtime(format="onnx", is_int8=True),
    "LiteRT": Runtime(format="litert"),
    "PyTorch `.pt2`": Runtime(format="torch"),
}


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--lengths", default="128,512", help="tokens; default: %(default)s")
    add("--batch-sizes", default="1,8", help="default: %(default)s")
    add("--runtimes", default=";".join(RUNTIMES), help="default: all")
    add("--rounds", type=int, default=7, help="timed calls of each")
    add("--artefacts", type=pathlib.Path, help="kept in this folder")
    add("--output", type=pathlib.Path)
    add("--quick", action="store_true", help="a tiny model, one short length")
    add("--export", type=int, help=argparse.SUPPRESS)
    add("--answer", help=argparse.SUPPRESS)
    if parser.parse_args().quick:
        parser.set_defaults(lengths="32", rounds=1)
    return parser.parse_args()


# === What the processes do that have a backend ===


def make_models(arguments):
    """The classifier, dense and converted."""
    import inference
    import keras
    import keras_hub

    import keras_coda

    keras.utils.set_random_seed(0)
    backbone = inference.bert()
    if arguments.quick:
        config = {**backbone.get_config(), "num_layers": 2, "hidden_dim": 96}
        backbone = keras_hub.models.BertBackbone.from_config(config)
    dense = keras_hub.models.BertTextClassifier(
        backbone=backbone, num_classes=2, preprocessor=None
    )
    models = {"dense": dense}
    for factor in REDUCTION_FACTORS:
        models[str(factor)] = keras_coda.coda_wrap(
            dense, reduction_factor=factor
        )
    return models


def export(arguments):
    """Writes what artefacts a length lacks, and what arithmetic allows."""
    import keras_coda
    from keras_coda.exporting.formats import FORMATS

    assert set(FORMATS) == {r.format for r in RUNTIMES.values()} - {None}
    length = arguments.export
    models = functools.cache(lambda: make_models(arguments))
    if not limits_path(arguments, length).exists():
        limits = {
            name: keras_coda.analysis.flops(models()[name], length).ratio
            for name in MODELS[1:]
        }
        limits_path(arguments, length).write_text(json.dumps(limits))
    runtimes = [RUNTIMES[name] for name in arguments.runtimes.split(";")]
    formats = {runtime.format for runtime in runtimes} - {None}
    for format, name in itertools.product(formats, MODELS):
        path = artefact(arguments, Runtime(format=format), name, length)
        if not path.exists():
            keras_coda.export(
                models()[name],
                path,
                format=format,
                sequence_length=length,
                verbose=False,
            )
        if format == "onnx" and not artefact_int8(path).exists():
            quantize(path, artefact_int8(path))


def artefact(arguments, runtime, name, length):
    from keras_coda.exporting.formats import FORMATS

    suffix = FORMATS[runtime.format].suffix
    path = arguments.artefacts / f"{runtime.format}-{name}-{length}{suffix}"
    return artefact_int8(path) if runtime.is_int8 else path


def artefact_int8(path):
    return path.with_stem(f"{path.stem}-int8")


def limits_path(arguments, length):
    return arguments.artefacts / f"limits-{length}.json"


def quantize(path, quantized_path):
    """ONNX Runtime's int8: weights of matrix products, dynamic activations."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(
        path,
        quantized_path,
        op_types_to_quantize=["MatMul"],
        weight_type=QuantType.QInt8,
    )


def make_answers(arguments, length):
    """A function for each model, from NumPy inputs to NumPy outputs."""
    runtime = RUNTIMES[arguments.answer]
    if runtime.format is not None:
        sys.path.append(str(pathlib.Path(__file__).parents[1]))
        from tests.exporting.run_artefacts import LOADERS

        return {
            name: LOADERS[runtime.format](
                str(artefact(arguments, runtime, name, length))
            )
            for name in MODELS
        }
    models = make_models(arguments)
    for name, model in models.items():
        # Keras compiles a dense model on PyTorch layer by layer, for minutes.
        is_keras = runtime.backend == "torch" and name == "dense"
        model.compile(jit_compile=runtime.is_compiled and not is_keras)
    return {
        name: lambda inputs, model=model: model.predict(
            inputs, batch_size=len(inputs["token_ids"]), verbose=0
        )
        for name, model in models.items()
    }


def answer(arguments):
    """Answers requests from the standard input: a model and a batch size."""
    import numpy as np

    length = int(arguments.lengths)
    answers = make_answers(arguments, length)
    rng = np.random.default_rng(0)
    print("ready", flush=True)
    for line in sys.stdin:
        name, batch_size = line.split()
        shape = int(batch_size), length
        inputs = {
            "token_ids": rng.integers(1, 1000, shape).astype("int32"),
            "segment_ids": np.zeros(shape, "int32"),
            "padding_mask": np.ones(shape, "int32"),
        }
        start = time.perf_counter()
        outputs = answers[name](inputs)
        for value in outputs.values() if isinstance(outputs, dict) else outputs:
            np.asarray(value)
        print("seconds", time.perf_counter() - start, flush=True)


# === The process that asks them ===


class Worker:
    """A runtime in a process of its own."""

    def __init__(self, name, length, arguments):
        self.process = start(
            RUNTIMES[name].backend or "tensorflow",
            arguments,
            f"--answer={name}",
            f"--lengths={length}",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.read("ready")

    def read(self, key):
        """What the process says next after `key`."""
        for line in self.process.stdout:
            if line.split()[:1] == [key]:
                return line.split()[1:]
        raise RuntimeError(f"{self.process.args} ended")

    def ask(self, model, batch_size):
        """Seconds of a request."""
        self.process.stdin.write(f"{model} {batch_size}\n")
        self.process.stdin.flush()
        return float(self.read("seconds")[0])

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def start(backend, arguments, *further, **streams):
    command = [
        sys.executable,
        __file__,
        f"--artefacts={arguments.artefacts}",
        f"--runtimes={arguments.runtimes}",
    ]
    if arguments.quick:
        command.append("--quick")
    return subprocess.Popen(
        [*command, *further],
        env={**os.environ, "KERAS_BACKEND": backend},
        stderr=None if arguments.quick else subprocess.DEVNULL,
        text=True,
        **streams,
    )


def run(length, arguments):
    """Records of one length."""
    process = start("tensorflow", arguments, f"--export={length}")
    if process.wait():
        raise RuntimeError(f"{process.args} failed")
    limits = json.loads(limits_path(arguments, length).read_text())
    batch_sizes = list(map(int, arguments.batch_sizes.split(",")))
    names = arguments.runtimes.split(";")
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in rich.progress.track(names, f"loading, {length} tokens"):
            workers[name] = Worker(name, length, arguments)
            stack.callback(workers[name].close)
        seconds = {}
        for number in rich.progress.track(
            range(arguments.rounds + 1), f"asking, {length} tokens"
        ):
            for batch_size in batch_sizes:
                for name, worker in workers.items():
                    for model in MODELS:
                        # The first request compiles.
                        if number == 0:
                            worker.ask(model, batch_size)
                        times = seconds.setdefault(
                            (batch_size, name, model), []
                        )
                        times.append(worker.ask(model, batch_size))
    records = []
    for batch_size in batch_sizes:
        for name in names:
            of = {
                model: statistics.median(seconds[batch_size, name, model])
                for model in MODELS
            }
            record = {"n": length, "batch": batch_size, "runtime": name}
            record |= {
                f"{model if model == 'dense' else f'r = {model}'}, ms": 1000
                * of[model]
                for model in MODELS
            }
            record["r = 1 / dense"] = of["1"] / of["dense"]
            for model in MODELS[2:]:
                speedup = of["1"] / of[model]
                record[f"efficiency, r = {model}"] = speedup / limits[model]
                record[f"dense / r = {model}"] = of["dense"] / of[model]
            records.append(record)
    return records


def main():
    arguments = parse_arguments()
    if arguments.export:
        export(arguments)
    elif arguments.answer:
        answer(arguments)
    else:
        compare(arguments)


def compare(arguments):
    import timing

    records = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.artefacts is None:
            arguments.artefacts = pathlib.Path(folder)
        arguments.artefacts.mkdir(parents=True, exist_ok=True)
        for length in map(int, arguments.lengths.split(",")):
            records += run(length, arguments)
    name = "latency-quick" if arguments.quick else "latency"
    path = (arguments.output or timing.RESULTS) / f"{name}.json"
    setup = {
        module: __import__(module).__version__
        for module in ("jax", "onnxruntime", "tensorflow", "torch")
    }
    setup["rounds"] = arguments.rounds
    names = ("n", "batch", "runtime")
    print(timing.write_run(path, setup, records, names))


if __name__ == "__main__":
    main()
