"""Serves SavedModels over HTTP, with the REST protocol of TensorFlow Serving.

    python examples/serve/server.py films=exported/films --port 8501
    curl -d '{"instances": ["a fine film"]}' \
        http://127.0.0.1:8501/v1/models/films:predict

Needs TensorFlow and the packages of requirements.txt, and neither Keras nor
keras_coda. It answers what it cannot compute with a 4xx status and goes on.
"""

import argparse
import importlib.util
import json
import os
import pathlib

# Before TensorFlow is imported, which logs what it finds on the machine.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import anyio
import tensorflow as tf
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Route


class Model:
    """A SavedModel that is called with JSON.

    Args:
        path: the folder of the SavedModel.
        max_batch_size: the most instances in a request.
    """

    def __init__(self, path, max_batch_size):
        self.loaded = tf.saved_model.load(path)
        self.max_batch_size = max_batch_size

    def predict(self, request):
        """The answer to a request: `predictions`, or `outputs` by column."""
        name = request.get("signature_name", "serving_default")
        if name not in self.loaded.signatures:
            raise ValueError(
                f"There is no signature {name!r}. "
                f"Known: {sorted(self.loaded.signatures)}"
            )
        signature = self.loaded.signatures[name]
        _, specs = signature.structured_input_signature
        if ("instances" in request) == ("inputs" in request):
            raise ValueError('Send either "instances" or "inputs".')
        by_row = "instances" in request
        if by_row:
            columns = to_columns(request["instances"], specs)
        else:
            columns = request["inputs"]
            if len(specs) == 1 and not isinstance(columns, dict):
                columns = dict.fromkeys(specs, columns)
        outputs = signature(**self.to_tensors(columns, specs))
        outputs = {name: to_json(value) for name, value in outputs.items()}
        if len(outputs) == 1:
            (values,) = outputs.values()
            return {"predictions" if by_row else "outputs": values}
        if by_row:
            rows = zip(*outputs.values(), strict=True)
            return {"predictions": [dict(zip(outputs, row)) for row in rows]}
        return {"outputs": outputs}

    def to_tensors(self, columns, specs):
        """Tensors of the signature's names, dtypes and shapes."""
        if not isinstance(columns, dict) or columns.keys() != specs.keys():
            raise ValueError(f"The inputs must be {sorted(specs)}.")
        tensors = {}
        for name, spec in specs.items():
            if not isinstance(columns[name], list) or not columns[name]:
                raise ValueError(f"{name!r} must be a list of instances.")
            if len(columns[name]) > self.max_batch_size:
                raise ValueError(
                    f"Send at most {self.max_batch_size} instances. "
                    f"Received: {len(columns[name])}"
                )
            tensors[name] = to_tensor(columns[name], spec.dtype)
            if not spec.shape.is_compatible_with(tensors[name].shape):
                raise ValueError(
                    f"{name!r} must have shape {spec.shape}. "
                    f"Received: {tensors[name].shape}"
                )
        if len({tensor.shape[0] for tensor in tensors.values()}) != 1:
            raise ValueError("All inputs must have as many instances.")
        return tensors

    def metadata(self):
        """Names, dtypes and shapes of each signature."""
        return {
            name: {
                "inputs": describe(signature.structured_input_signature[1]),
                "outputs": describe(signature.structured_outputs),
            }
            for name, signature in self.loaded.signatures.items()
        }


def to_columns(instances, specs):
    """A list of values by input, from a list of instances."""
    if not isinstance(instances, list):
        raise ValueError('"instances" must be a list.')
    if len(specs) == 1 and not isinstance((instances or [None])[0], dict):
        return dict.fromkeys(specs, instances)
    for instance in instances:
        if not isinstance(instance, dict) or instance.keys() != specs.keys():
            raise ValueError(f"Every instance must have {sorted(specs)}.")
    return {name: [row[name] for row in instances] for name in specs}


def to_tensor(values, dtype):
    if dtype == tf.string:
        return tf.constant(values, dtype)
    if dtype.is_integer:
        # TensorFlow would wrap what is too large.
        wide = tf.constant(values, tf.int64)
        tensor = tf.cast(wide, dtype)
        in_range = tf.cast(tensor, tf.int64) == wide
    else:
        # Python reads 1e999 as infinity.
        tensor = tf.constant(values, dtype)
        in_range = tf.math.is_finite(tensor)
    if not tf.reduce_all(in_range):
        raise ValueError(f"A number is out of the range of {dtype.name}.")
    return tensor


def to_json(tensor):
    if tensor.dtype == tf.bfloat16:
        tensor = tf.cast(tensor, tf.float32)
    return tensor.numpy().tolist()


def describe(specs):
    return {
        name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
        for name, spec in specs.items()
    }


def load_text_operations():
    """Registers the operations of tokenizers, if TensorFlow Text is there.

    Without importing it, which would import Keras.
    """
    spec = importlib.util.find_spec("tensorflow_text")
    for folder in spec.submodule_search_locations if spec else []:
        libraries = pathlib.Path(folder, "python", "ops").glob("*.so")
        for library in sorted(libraries):
            tf.load_op_library(str(library))


# === HTTP ===


def make_app(models, max_body_bytes, body_seconds, num_threads):
    """The ASGI application.

    Args:
        models: dict from name to `Model`.
        max_body_bytes: the largest body of a request.
        body_seconds: how long a client may take to send it.
        num_threads: how many requests are computed at the same time; the
            others wait.
    """
    limiter = anyio.CapacityLimiter(num_threads)

    def find(request):
        name = request.path_params["name"]
        if name not in models:
            raise HTTPException(404, f"There is no model {name!r}.")
        return models[name]

    async def predict(request):
        model = find(request)
        try:
            with anyio.fail_after(body_seconds):
                body = await read_body(request, max_body_bytes)
        except TimeoutError as error:
            raise HTTPException(
                408, f"The body took more than {body_seconds} seconds."
            ) from error
        try:
            return await anyio.to_thread.run_sync(
                lambda: JSONResponse(model.predict(parse(body))),
                limiter=limiter,
            )
        except (
            OverflowError,
            RecursionError,
            TypeError,
            ValueError,
            tf.errors.InvalidArgumentError,
        ) as error:
            raise HTTPException(400, str(error)) from error

    async def status(request):
        find(request)
        version = {"version": "1", "state": "AVAILABLE"}
        version["status"] = {"error_code": "OK", "error_message": ""}
        return JSONResponse({"model_version_status": [version]})

    async def metadata(request):
        return JSONResponse(find(request).metadata())

    async def on_error(request, error):
        return JSONResponse({"error": error.detail}, error.status_code)

    return Starlette(
        routes=[
            Route("/v1/models/{name}:predict", predict, methods=["POST"]),
            Route("/v1/models/{name}", status),
            Route("/v1/models/{name}/metadata", metadata),
        ],
        exception_handlers={HTTPException: on_error},
    )


async def read_body(request, max_body_bytes):
    """The body, of which no more is read than is allowed."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body_bytes:
                raise HTTPException(
                    413, f"Send at most {max_body_bytes} bytes in a request."
                )
    except ClientDisconnect as error:
        # Nobody reads it, but the log stays short.
        raise HTTPException(400, "The body is not whole.") from error
    return bytes(body)


def parse(body):
    request = json.loads(body, parse_constant=reject_constant)
    if not isinstance(request, dict):
        raise ValueError("The body must be a JSON object.")
    return request


def reject_constant(name):
    raise ValueError(f"{name} is not JSON.")


def load_model(folder, max_batch_size):
    """A `Model`, or a `ValueError` that says what is there instead."""
    if not pathlib.Path(folder, "saved_model.pb").is_file():
        raise ValueError(
            f"{folder} is no SavedModel: it has no saved_model.pb. Write one "
            "with `keras-coda export`."
        )
    try:
        return Model(folder, max_batch_size)
    except (OSError, ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} cannot be loaded: {reason}") from error


def port(text):
    """An argparse type."""
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(
            f"must be from 0 to {2**16 - 1}, received {text}"
        )
    return value


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME=FOLDER")
    add("--host", default="127.0.0.1", help="default: %(default)s")
    add("--port", type=port, default=8501, help="0 takes a free one")
    add("--max-batch-size", type=int, default=64)
    add("--max-body-mb", type=float, default=16)
    add("--body-seconds", type=float, default=30, help="to send a body in")
    add("--threads", type=int, default=1, help="requests computed at a time")
    add("--max-connections", type=int, default=64, help="more are answered 503")
    arguments = parser.parse_args()
    if any("=" not in model for model in arguments.models):
        parser.error("each model is NAME=FOLDER")
    folders = dict(model.split("=", 1) for model in arguments.models)
    load_text_operations()
    try:
        models = {
            name: load_model(folder, arguments.max_batch_size)
            for name, folder in folders.items()
        }
    except ValueError as error:
        parser.error(str(error))
    app = make_app(
        models,
        max_body_bytes=int(arguments.max_body_mb * 2**20),
        body_seconds=arguments.body_seconds,
        num_threads=arguments.threads,
    )
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        limit_concurrency=arguments.max_connections,
        log_level="info",
        access_log=False,
    )


if __name__ == "__main__":
    main()
