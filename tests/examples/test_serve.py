"""The example server, on loopback, with artefacts of converted models."""

import http.client
import json
import re
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_coda
from tests.examples import FOLDER
from tests.exporting import artefacts

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="the server is the same for artefacts of all backends",
)

MAX_BATCH_SIZE = 4
MAX_BODY_MB = 0.1


@pytest.fixture(scope="module")
def models():
    return {"bert": artefacts.bert(), "t5": artefacts.t5()}


@pytest.fixture(scope="module")
def port(models, tmp_path_factory):
    """The port of a server of the models, which cannot import Keras."""
    folder = tmp_path_factory.mktemp("served")
    for name, model in models.items():
        keras_coda.export(
            model, folder / name, from_strings=name == "bert", verbose=False
        )
    server = subprocess.Popen(
        [
            sys.executable,
            str(FOLDER / "serve" / "server.py"),
            *(f"{name}={folder / name}" for name in models),
            "--port=0",
            f"--max-batch-size={MAX_BATCH_SIZE}",
            f"--max-body-mb={MAX_BODY_MB}",
            "--body-seconds=1",
        ],
        env=artefacts.environment_without_keras(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        lines = []
        for line in server.stderr:
            lines.append(line)
            found = re.search(r"running on http://127.0.0.1:(\d+)", line)
            if found:
                break
        else:
            raise AssertionError("".join(lines[-30:]))
        yield int(found[1])
        assert server.poll() is None, "the server has died"
        server.kill()


def request(port, path, body=None, method="POST"):
    """The status and the JSON of the answer."""
    if not isinstance(body, (bytes, type(None))):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def to_instances(inputs):
    return [
        dict(zip(inputs, row))
        for row in zip(*(value.tolist() for value in inputs.values()))
    ]


def test_text_in_and_logits_out(port, models):
    expected = models["bert"].predict(artefacts.TEXTS, verbose=0)
    status, answer = request(
        port, "/v1/models/bert:predict", {"instances": artefacts.TEXTS}
    )
    assert status == 200, answer
    np.testing.assert_allclose(answer["predictions"], expected, atol=1e-4)
    # By column, and with the name of the input.
    for inputs in (artefacts.TEXTS, {"text": artefacts.TEXTS}):
        _, answer = request(port, "/v1/models/bert:predict", {"inputs": inputs})
        np.testing.assert_allclose(answer["outputs"], expected, atol=1e-4)


# Keras warns of the softmax of a sequence of one token.
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
@pytest.mark.parametrize("size", artefacts.ANY_LENGTH)
@pytest.mark.parametrize("name", ["bert", "t5"])
def test_tokens_in(port, models, name, size):
    inputs = artefacts.make_inputs(models[name], *size)
    expected = artefacts.predict(models[name], inputs)
    body = {"instances": to_instances(inputs)}
    if name == "bert":
        # By default it takes strings.
        body["signature_name"] = "serve"
    status, answer = request(port, f"/v1/models/{name}:predict", body)
    assert status == 200, answer
    for key, value in expected.items():
        actual = answer["predictions"]
        if len(expected) > 1:
            actual = [row[key] for row in actual]
        np.testing.assert_allclose(actual, value, atol=1e-4)


def test_status_and_metadata(port):
    status, answer = request(port, "/v1/models/bert", method="GET")
    assert status == 200
    assert answer["model_version_status"][0]["state"] == "AVAILABLE"
    status, answer = request(port, "/v1/models/bert/metadata", method="GET")
    assert status == 200
    assert answer["serving_default"]["inputs"] == {
        "text": {"dtype": "string", "shape": [None]}
    }
    assert answer["serve"]["inputs"]["token_ids"] == {
        "dtype": "int32",
        "shape": [None, None],
    }


ROW = {"token_ids": [1, 2], "segment_ids": [0, 0], "padding_mask": [1, 1]}


def tokens(*instances):
    return {"signature_name": "serve", "instances": list(instances)}


@pytest.mark.parametrize(
    "body, message",
    [
        (b"{", "Expecting"),
        (b"\xff", "decode"),
        (b"[" * 50_000, "recursion"),
        ([1], "JSON object"),
        ({}, "Send either"),
        ({"instances": [], "inputs": []}, "Send either"),
        ({"instances": "a film"}, "must be a list"),
        ({"instances": []}, "list of instances"),
        ({"instances": [1]}, "string"),
        ({"instances": [["a"]]}, "must have shape"),
        ({"instances": ["a"] * (MAX_BATCH_SIZE + 1)}, "at most"),
        ({"instances": ["a"], "signature_name": "x"}, "no signature 'x'"),
        ({"instances": ["a"], "signature_name": ["x"]}, ""),
        (tokens({}), "Every instance"),
        (tokens(ROW, {**ROW, "more": [1]}), "Every instance"),
        (tokens({**ROW, "token_ids": [1, 2, 3]}), ""),
        (tokens(ROW, {**ROW, "token_ids": [1]}), "sequence"),
        (tokens({**ROW, "token_ids": 1}), "must have shape"),
        (tokens({**ROW, "token_ids": [0.5, 1]}), ""),
        (tokens({**ROW, "token_ids": [2**40, 1]}), "range of int32"),
        (tokens({**ROW, "token_ids": [2**70, 1]}), ""),
        (tokens({**ROW, "token_ids": [10_000, 1]}), ""),
        (b'{"instances": [NaN]}', "NaN is not JSON"),
    ],
)
def test_bad_requests_are_answered(port, body, message):
    status, answer = request(port, "/v1/models/bert:predict", body)
    assert status == 400, answer
    assert message in answer["error"]


def import_server():
    """In the test, because it imports TensorFlow."""
    sys.path.insert(0, str(FOLDER / "serve"))
    import server

    return server


@pytest.mark.parametrize("value", [np.inf, 1e39, [0.0, np.nan]])
def test_numbers_out_of_range(value):
    """JSON has no infinity, but Python reads 1e999 as one."""
    server = import_server()
    import tensorflow as tf

    with pytest.raises(ValueError, match="range of float32"):
        server.to_tensor(value, tf.float32)


def test_other_errors(port):
    status, answer = request(port, "/v1/models/none:predict", {"instances": []})
    assert status == 404
    assert "no model 'none'" in answer["error"]
    status, _ = request(port, "/v1/models/bert:predict", method="GET")
    assert status == 404
    too_large = b" " * int(MAX_BODY_MB * 2**20 + 1)
    status, answer = request(port, "/v1/models/bert:predict", too_large)
    assert status == 413
    assert "at most" in answer["error"]
    unfinished = (
        b"POST /v1/models/bert:predict HTTP/1.1\r\n"
        b"Host: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{"
    )
    # A client that leaves in the middle.
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(unfinished)
    # A client that sends no more, which the next does not wait for.
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(unfinished)
        status, _ = request(
            port, "/v1/models/bert:predict", {"instances": ["a film"]}
        )
        assert status == 200
        assert b" 408 " in connection.recv(1024)


@pytest.mark.parametrize(
    "content, port, message",
    [
        (None, "0", "is no SavedModel: it has no saved_model.pb"),
        (b"no", "0", "cannot be loaded: "),
        (None, "65536", "--port: must be from 0 to 65535, received 65536"),
    ],
)
def test_what_cannot_be_served(
    tmp_path, monkeypatch, capsys, content, port, message
):
    server = import_server()
    if content is not None:
        (tmp_path / "saved_model.pb").write_bytes(content)
    arguments = ["server.py", f"bert={tmp_path}", f"--port={port}"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as error:
        server.main()
    assert error.value.code == 2
    assert message in capsys.readouterr().err
