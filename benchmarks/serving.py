"""Speed of exported models, dense against CoDA, called and over HTTP.

    KERAS_BACKEND=tensorflow python benchmarks/serving.py
    KERAS_BACKEND=tensorflow python benchmarks/serving.py --quick

Exports BERT base, dense and converted, as SavedModels, and measures

- calls: seconds of a call of each SavedModel, in turn, in one process;
- served: requests a second and latencies of examples/serve/server.py, one
  server for each artefact, under the same load of clients, in turn.

All requests are the same batch. Writes serving-BACKEND.json and .md.
"""

import argparse
import contextlib
import http.client
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import inference
import keras
import keras_hub
import numpy as np
import timing

import keras_coda
from keras_coda.layers.conditional_transformer_block import ATTENTIONS

SERVER = pathlib.Path(__file__).parents[1] / "examples" / "serve" / "server.py"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sequence-length", type=int, default=512, help="tokens; default: 512")
    add("--batch-size", type=int, default=8, help="of each request; default: 8")
    add("--reduction-factor", type=float, default=4, help="default: 4")
    add("--rounds", type=int, default=10, help="of calls, of load; default: 10")
    add("--clients", type=int, default=4, help="at the same time; default: 4")
    add("--requests", type=int, default=3, help="by client and round")
    add("--output", type=pathlib.Path, default=timing.RESULTS, help="a folder")
    add("--quick", action="store_true", help="a tiny model, 64 tokens, 1 round")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.sequence_length, arguments.rounds = 64, 1
    return arguments


def make_dense(arguments):
    if not arguments.quick:
        return inference.bert()
    return keras_hub.models.BertBackbone(
        vocabulary_size=1000,
        num_layers=2,
        num_heads=2,
        hidden_dim=32,
        intermediate_dim=64,
    )


def export_candidates(folder, arguments):
    """Writes the artefacts; returns their folders and inputs."""
    dense = make_dense(arguments)
    models = {"dense": dense}
    for attention in ATTENTIONS:
        models[f"coda {attention}"] = keras_coda.coda_wrap(
            dense,
            reduction_factor=arguments.reduction_factor,
            attention=attention,
        )
    for name, model in models.items():
        keras_coda.export(
            model,
            folder / name,
            sequence_length=arguments.sequence_length,
            # All that a classifier reads, and a short answer.
            outputs="pooled_output",
        )
    shape = (arguments.batch_size, arguments.sequence_length)
    token_ids = np.random.default_rng(0).integers(1, 1000, shape, "int32")
    inputs = {
        "token_ids": token_ids,
        "segment_ids": np.zeros_like(token_ids),
        "padding_mask": np.ones_like(token_ids),
    }
    return {name: folder / name for name in models}, inputs


# === Calls ===


def time_calls(folders, inputs, num_rounds):
    """Median seconds of a call of each SavedModel."""
    import tensorflow as tf

    tensors = {name: tf.constant(value) for name, value in inputs.items()}
    loaded = {
        name: tf.saved_model.load(folder) for name, folder in folders.items()
    }

    def call(model):
        outputs = model.signatures["serving_default"](**tensors)
        outputs["pooled_output"].numpy()

    return timing.interleave(
        {
            name: lambda model=model: call(model)
            for name, model in loaded.items()
        },
        num_rounds,
        num_warmup=2,
    )


# === Served ===


@contextlib.contextmanager
def serve(folder):
    """A server of one artefact; yields its port."""
    process = subprocess.Popen(
        [sys.executable, str(SERVER), f"model={folder}", "--port=0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            for line in process.stderr:
                found = re.search(r"running on http://127.0.0.1:(\d+)", line)
                if found:
                    yield int(found[1])
                    return
            raise RuntimeError(f"The server of {folder} did not start.")
        finally:
            process.kill()


def post(port, body):
    """Seconds until the answer is there."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request("POST", "/v1/models/model:predict", body)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        raise RuntimeError(f"{response.status}: {answer[:1000]}")
    return time.perf_counter() - start


def load(port, body, arguments):
    """Requests a second, and all latencies, of a round of all clients."""
    latencies, errors = [], []

    def run_client():
        try:
            for _ in range(arguments.requests):
                latencies.append(post(port, body))
        except Exception as error:
            errors.append(error)

    clients = [
        threading.Thread(target=run_client) for _ in range(arguments.clients)
    ]
    start = time.perf_counter()
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    seconds = time.perf_counter() - start
    if errors:
        raise errors[0]
    return len(latencies) / seconds, latencies


def time_served(folders, inputs, arguments):
    """Median requests a second, p50 and p95 of the latency, by name."""
    instances = [
        dict(zip(inputs, row))
        for row in zip(*(value.tolist() for value in inputs.values()))
    ]
    body = json.dumps({"instances": instances}).encode()
    rates = {name: [] for name in folders}
    latencies = {name: [] for name in folders}
    with contextlib.ExitStack() as servers:
        ports = {
            name: servers.enter_context(serve(folder))
            for name, folder in folders.items()
        }
        for port in ports.values():
            post(port, body)
        for _ in range(arguments.rounds):
            for name, port in ports.items():
                rate, round_latencies = load(port, body, arguments)
                rates[name].append(rate)
                latencies[name] += round_latencies
    return {
        name: {
            "requests/s": statistics.median(rates[name]),
            "p50 s": float(np.quantile(latencies[name], 0.5)),
            "p95 s": float(np.quantile(latencies[name], 0.95)),
        }
        for name in folders
    }


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        folders, inputs = export_candidates(pathlib.Path(folder), arguments)
        keras.backend.clear_session()
        seconds = time_calls(folders, inputs, arguments.rounds)
        served = time_served(folders, inputs, arguments)
    rows = []
    for name in folders:
        rate = served[name]["requests/s"]
        rows.append(
            {
                "model": name,
                "r": None if name == "dense" else arguments.reduction_factor,
                "call s": seconds[name],
                "call speedup": seconds["dense"] / seconds[name],
                **served[name],
                "served speedup": rate / served["dense"]["requests/s"],
            }
        )
    table = timing.markdown_table(rows)
    print(table)
    setup = {
        key: value
        for key, value in vars(arguments).items()
        if key not in ("output", "quick")
    }
    path = timing.results_path("serving", arguments)
    timing.write_json(
        path, {"versions": timing.versions(), "setup": setup, "rows": rows}
    )
    timing.write(path.with_suffix(".md"), table)


if __name__ == "__main__":
    main()
