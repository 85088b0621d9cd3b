"""What the speed benchmarks share: interleaved timing, records and tables."""

import ctypes
import gc
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time

import keras
import keras_hub

import keras_coda

RESULTS = pathlib.Path(__file__).parent / "results"


def interleave(candidates, num_rounds, num_warmup=1):
    """Times functions in turn, so that a slow moment hits all of them.

    Args:
        candidates: dict from name to a function without arguments that
            returns when its work is done.
        num_rounds: int. Timed calls of each.
        num_warmup: int. Calls of each before, which compile.

    Returns:
        A dict from name to the median seconds of a call.
    """
    seconds = {name: [] for name in candidates}
    for number in range(num_warmup + num_rounds):
        for name, function in candidates.items():
            start = time.perf_counter()
            function()
            if number >= num_warmup:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def compiled(function, *tensors):
    """A function without arguments that computes and waits.

    Args:
        function: of `tensors`, or of structures of them.
        *tensors: what it is called with.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        # A function of its own: `jax.jit` hashes what it compiles.
        jitted = jax.jit(lambda *tensors: function(*tensors))
        return lambda: jax.block_until_ready(jitted(*tensors))
    if backend == "tensorflow":
        import tensorflow as tf

        graph = tf.function(lambda *tensors: function(*tensors))
        return lambda: graph(*tensors)

    def call():
        import torch

        with torch.inference_mode():
            function(*tensors)
        if device() != "cpu":
            torch.cuda.synchronize()

    return call


def peak_memory(script, candidate, *arguments):
    """Peak memory of a call in MB, over that before it, in its own process.

    Args:
        script: a script that, given `--measure-memory-of JSON`, makes that
            candidate and calls `print_peak_memory`.
        candidate: what JSON holds.
        *arguments: further arguments of the script.
    """
    process = subprocess.run(
        [
            sys.executable,
            script,
            "--measure-memory-of",
            json.dumps(candidate),
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(process.stdout.split()[-1])


def print_peak_memory(function):
    """Calls a function a few times and prints its peak memory in MB.

    Resident memory, which Linux counts, or that of the GPU, if there is one.
    """
    if device() != "cpu":
        before, _ = _gpu_memory()
        for _ in range(3):
            function()
        print((_gpu_memory()[1] - before) / 2**20)
        return
    # What was freed would be used again, and not be counted. Forget the peak of
    # what was before, too.
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    for _ in range(3):
        function()
    print(_status("VmHWM") - before)


def _status(field):
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(field)


def _gpu_memory():
    """Bytes in use now, and at most so far."""
    if keras.config.backend() == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats()
        return statistics["bytes_in_use"], statistics["peak_bytes_in_use"]
    import torch

    return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()


def device():
    """The name of the GPU that Keras computes on, or `"cpu"`."""
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        kind = jax.local_devices()[0].device_kind
        return "cpu" if jax.default_backend() == "cpu" else kind
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    elif keras.distribution.list_devices("gpu"):
        return "gpu"
    return "cpu"


def versions():
    """Versions and machine, to be kept with every result."""
    backend = keras.config.backend()
    return {
        "backend": backend,
        "backend_version": __import__(backend).__version__,
        "keras": keras.version(),
        "keras_hub": keras_hub.__version__,
        "keras_coda": keras_coda.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "device": device(),
        "machine": platform.machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def parse_arguments(parser, **quick):
    """Parses the command line; with `--quick` other defaults."""
    if parser.parse_args().quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def add_dtype(parser):
    parser.add_argument(
        "--dtype",
        default="float32",
        type=_set_dtype_policy,
        help="float32 or mixed_bfloat16, default: %(default)s",
    )


def _set_dtype_policy(name):
    keras.config.set_dtype_policy(name)
    return name


def clear_session(dtype):
    """Forgets all models; Keras forgets the policy of dtypes with them."""
    keras.backend.clear_session()
    keras.config.set_dtype_policy(dtype)


def results_path(benchmark, arguments):
    """Where the JSON goes: of `--quick` elsewhere than what was measured."""
    parts = [benchmark]
    if arguments.quick:
        parts.append("quick")
    parts.append(keras.config.backend())
    if getattr(arguments, "mode", None) == "compiled":
        parts.append("compiled")
    if getattr(arguments, "dtype", "float32") != "float32":
        parts.append(arguments.dtype.removeprefix("mixed_"))
    if device() != "cpu":
        parts.append("gpu")
    return arguments.output / f"{'-'.join(parts)}.json"


def write(path, text):
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def write_json(path, content):
    write(path, json.dumps(content, indent=1) + "\n")


def write_run(path, setup, records, names):
    """Adds a run to those of a file, and writes the table of all beside it.

    Records of earlier runs that ask the same are dropped. What is compared
    should be of one run.

    Args:
        path: of the JSON file.
        setup: dict of what the run depends on.
        records: list of dicts.
        names: the keys of a record that say what it asks.

    Returns:
        The table.
    """

    def question(record):
        return [record[name] for name in names]

    questions = list(map(question, records))
    runs = json.loads(path.read_text())["timings"] if path.exists() else []
    for run in runs:
        run["records"] = [
            record
            for record in run["records"]
            if question(record) not in questions
        ]
    runs = [run for run in runs if run["records"]]
    runs.append({"versions": versions(), **setup, "records": records})
    table = markdown_table(
        [
            {"run": number, **record}
            for number, run in enumerate(runs, start=1)
            for record in run["records"]
        ]
    )
    write_json(path, {"timings": runs})
    write(path.with_suffix(".md"), table)
    return table


def markdown_table(rows):
    """A Markdown table of a list of dicts; what one lacks is left empty."""
    if not rows:
        return ""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[_format(row.get(name)) for name in names] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _format(value):
    if isinstance(value, float):
        return f"{value:.3g}" if value < 0.1 else f"{value:.2f}"
    return "" if value is None else str(value)
