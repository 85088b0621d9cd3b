import os
import pathlib
import resource
import sys
import zipfile

import keras
import keras_hub
import pytest

import keras_coda
from keras_coda.exporting import formats
from keras_coda.exporting import signature
from tests.conversion import models
from tests.exporting import artefacts
from tests.exporting import run_artefacts
from tests.exporting.artefacts import ANY_LENGTH
from tests.exporting.artefacts import FIXED_LENGTH

BACKEND = keras.config.backend()

# What the backend writes itself: format, model, and arguments.
OWN = {
    # SavedModels of text models: tests/examples/test_serve.py.
    "tensorflow": [
        ("litert", "vit", {}),
        # With exact GELU, which tf2onnx does not know.
        ("onnx", "vit", {}),
        ("onnx", "int8", {}),
    ],
    "jax": [
        ("tf_saved_model", "bert", {"sequence_length": 12}),
        ("tf_saved_model", "int8", {}),
    ],
    "torch": [
        ("torch", "bert", {"sequence_length": 12}),
        ("torch", "t5", {"sequence_length": 12}),
        ("torch", "vit", {}),
        ("torch", "int8", {}),
    ],
}[BACKEND]
# What it has another backend write.
OTHER = {
    "tensorflow": [("torch", {"sequence_length": (12, 5)})],
    "jax": [],
    "torch": [("tf_saved_model", {})],
}[BACKEND]
writes_onnx = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="what is patched is in this process"
)


@pytest.fixture(scope="module")
def classifier():
    return artefacts.bert()


@pytest.fixture(scope="module")
def vit():
    return artefacts.vit()


# Keras warns of the softmax of a sequence of one token.
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
def test_artefacts_compute_what_the_model_does(classifier, vit, tmp_path):
    """One fresh process runs all of them, because importing takes seconds."""
    all_models = {"bert": classifier, "t5": artefacts.t5(), "vit": vit}
    all_models["int8"] = artefacts.vit()
    all_models["int8"].quantize("int8")
    checks = artefacts.Checks(tmp_path)
    before = classifier.get_weights()
    trainable = [weight.path for weight in classifier.trainable_weights]
    for format, name, kwargs in OWN:
        checks.export(
            all_models[name],
            f"{format}-{name}",
            format,
            FIXED_LENGTH if kwargs else ANY_LENGTH,
            **kwargs,
        )
    # The encoder of T5 alone, by way of another process.
    for format, kwargs in OTHER:
        checks.export(
            all_models["t5"],
            "encoder",
            format,
            FIXED_LENGTH if kwargs else ANY_LENGTH,
            outputs="encoder_sequence_output",
            **kwargs,
        )

    # The models go on, and what is exported later has what they are then.
    models.assert_close(classifier.get_weights(), before, atol=0)
    assert trainable == [w.path for w in classifier.trainable_weights]
    vit.save_adapter(tmp_path / "vit.safetensors")
    for layer in vit.backbone.trained_layers():
        models.randomize(layer, seed=7)
    vit.reduction_factor = 5
    format = "torch" if BACKEND == "torch" else "tf_saved_model"
    checks.export(vit, "changed-vit", format, [(2, None)], batch_size=2)
    vit.load_adapter(tmp_path / "vit.safetensors")
    assert vit.reduction_factor == [2, 3]
    checks.run()


@pytest.mark.parametrize(
    "format",
    [name for name, it in formats.FORMATS.items() if BACKEND in it.backends],
)
def test_no_weight_is_written_twice(tmp_path, format):
    # Large against the graph, which is also in the files.
    backbone = models.bert_backbone(
        num_layers=1, hidden_dim=128, intermediate_dim=512
    )
    coda = keras_coda.coda_wrap(backbone)
    path = tmp_path / f"model{formats.FORMATS[format].suffix}"
    keras_coda.export(coda, path, format, sequence_length=8, verbose=False)
    # Those of the dense model, and of the adapter and router.
    num_bytes = 4 * coda.count_params()
    assert 0.99 * num_bytes < bytes_of_weights(path) < 1.2 * num_bytes


def bytes_of_weights(path):
    if path.is_dir():
        path = path / "variables"
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return sum(
                entry.file_size
                for entry in file.infolist()
                if "/weights/" in entry.filename
                or "/constants/" in entry.filename
            )
    return artefacts.size_of(path)


def fail(model, path, specs):
    os.makedirs(path)
    with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write("half")
    raise OSError("the disk is full")


def succeed(model, path, specs):
    os.makedirs(path)
    with open(os.path.join(path, "saved_model.pb"), "w") as file:
        file.write(",".join(specs))


def use_writer(monkeypatch, write):
    saved_model = formats.FORMATS["tf_saved_model"]
    monkeypatch.setitem(
        formats.FORMATS,
        "tf_saved_model",
        saved_model._replace(write=write, backends=(BACKEND,)),
    )


def test_a_failed_export_changes_nothing(vit, tmp_path, monkeypatch):
    path = tmp_path / "new" / "vit"
    use_writer(monkeypatch, fail)
    with pytest.raises(OSError, match="disk is full"):
        keras_coda.export(vit, path)
    assert list(path.parent.iterdir()) == []

    use_writer(monkeypatch, succeed)
    keras_coda.export(vit, path, verbose=False)
    # It fails while writing, and at the last step.
    for write in (fail, lambda model, path, specs: None):
        use_writer(monkeypatch, write)
        with pytest.raises(OSError):
            keras_coda.export(vit, path)
        assert (path / "saved_model.pb").read_text() == "images"
        assert list(path.parent.iterdir()) == [path]


def test_a_full_disk(vit, tmp_path):
    """No writer of a backend may end the process, or report a success."""
    format, *_ = OWN[0]
    path = tmp_path / f"vit{formats.FORMATS[format].suffix}"
    keras_coda.export(vit, path, format, verbose=False)
    before = contents(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        # TensorFlow has errors of its own.
        with pytest.raises(Exception, match="File too large"):
            keras_coda.export(vit, path, format, verbose=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert contents(tmp_path) == before


def contents(folder):
    """Of all files in a folder, by path."""
    files = filter(pathlib.Path.is_file, folder.rglob("*"))
    return {path: path.read_bytes() for path in files}


def test_an_artefact_is_replaced(
    vit, classifier, tmp_path, monkeypatch, capsys
):
    use_writer(monkeypatch, succeed)
    path = tmp_path / "model"
    path.mkdir()
    keras_coda.export(vit, path)
    assert "Exported" in capsys.readouterr().out
    keras_coda.export(classifier, path, verbose=False)
    assert capsys.readouterr().out == ""
    inputs = (path / "saved_model.pb").read_text()
    assert sorted(inputs.split(",")) == [
        "padding_mask",
        "segment_ids",
        "token_ids",
    ]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_artefact_is_not_replaced(vit, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    for path, format in [
        (tmp_path, "tf_saved_model"),
        (tmp_path / "file", "tf_saved_model"),
        (tmp_path / "folder.pt2", "torch"),
    ]:
        with pytest.raises(ValueError, match="something else"):
            keras_coda.export(vit, path, format)


def test_the_error_of_another_process_is_shown(vit, tmp_path, monkeypatch):
    other = "tensorflow" if BACKEND == "torch" else "torch"
    monkeypatch.setitem(
        formats.FORMATS,
        "tf_saved_model",
        formats.FORMATS["tf_saved_model"]._replace(backends=(other,)),
    )
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no $KERAS_BACKEND >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match=f"(?s)exit status 3.*no {other}"):
        keras_coda.export(vit, tmp_path / "vit", verbose=False)
    assert not (tmp_path / "vit").exists()


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({"format": "pickle"}, ValueError, "`format` must be one of"),
        ({"format": "onnx"}, ValueError, "must end with '.onnx'"),
        (
            {"path": "a.tflite"},
            ValueError,
            "'litert'` takes one sequence length.*`sequence_length`.*'onnx'",
        ),
        ({"path": "a.pt2"}, ValueError, "'torch'` takes one sequence"),
        ({"sequence_length": 0}, ValueError, "at least 1"),
        ({"sequence_length": 1000}, ValueError, "at most .*=1000"),
        ({"sequence_length": "12"}, TypeError, "must be an integer"),
        ({"sequence_length": (1, 2, 3)}, ValueError, "or a pair"),
        ({"batch_size": -1}, ValueError, "`batch_size` must be at least 1"),
        ({"outputs": "pooled"}, ValueError, "one of .*logits.*pooled"),
        (
            {"path": "a.onnx", "from_strings": True},
            ValueError,
            "`from_strings` needs `format='tf_saved_model'`",
        ),
    ],
)
def test_bad_arguments(classifier, tmp_path, kwargs, error, message):
    path = tmp_path / kwargs.pop("path", "model")
    with pytest.raises(error, match=f"(?s){message}"):
        keras_coda.export(classifier, path, **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_a_sequential_model_has_a_signature():
    layers = [keras.Input((2,), name="features"), keras.layers.Dense(3)]
    named = signature.named_model(keras.Sequential(layers))
    assert list(named.input) == ["features"]
    (output,) = named.output.values()
    assert output.shape == (None, 3)


def test_pt2_with_an_older_keras(monkeypatch, classifier, tmp_path):
    monkeypatch.setattr(keras, "__version__", "3.14.1")
    with pytest.raises(ValueError, match="needs Keras 3.15"):
        keras_coda.export(
            classifier, tmp_path / "model.pt2", "torch", sequence_length=8
        )


def test_bad_models(vit, tmp_path):
    without_input = keras.Sequential([keras.layers.Dense(2)])
    for model in ("model", without_input):
        with pytest.raises(TypeError, match="`model` must be a functional"):
            keras_coda.export(model, tmp_path / "model")
    image = keras.Input((2,))
    twice = keras.Model(image, [image, image])
    with pytest.raises(ValueError, match="must have different names"):
        keras_coda.export(twice, tmp_path / "model")
    with pytest.raises(ValueError, match="needs a text classifier"):
        keras_coda.export(vit, tmp_path / "model", from_strings=True)
    without_preprocessor = keras_hub.models.BertTextClassifier(
        models.bert_backbone(), num_classes=2
    )
    with pytest.raises(ValueError, match="with a preprocessor"):
        keras_coda.export(
            without_preprocessor, tmp_path / "model", from_strings=True
        )


@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_half_precision_is_refused(tmp_path, format):
    """What is written would fail when it is served."""
    model = models.vit_backbone(num_layers=1, dtype="mixed_bfloat16")
    path = tmp_path / f"model{formats.FORMATS[format].suffix}"
    with pytest.raises(ValueError, match=r"in float32.*\['bfloat16'\]"):
        keras_coda.export(keras_coda.coda_wrap(model), path, format)


@writes_onnx
def test_weights_beside_a_large_onnx_file(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_ONNX_BYTES", 0)
    path = tmp_path / "vit.onnx"
    keras_coda.export(vit, path)
    (weights,) = tmp_path.glob("vit.onnx.*.data")
    assert weights.stat().st_mode == path.stat().st_mode
    inputs = artefacts.make_inputs(vit, batch_size=2, length=None)
    (outputs,) = run_artefacts.load_onnx(path)(inputs).values()
    models.assert_close(outputs, vit.predict(inputs["images"], verbose=0))

    other = tmp_path / "other-vit.onnx.0123abcd.data"
    other.write_bytes(b"of another")
    keras_coda.export(vit, path)
    (again,) = tmp_path.glob("vit.onnx.*.data")
    assert again != weights
    monkeypatch.undo()
    keras_coda.export(vit, path)
    assert {*tmp_path.iterdir()} == {path, other}


@writes_onnx
def test_no_weights_are_left_beside_an_onnx_file(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_ONNX_BYTES", 0)

    def fail(source, target):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        keras_coda.export(vit, tmp_path / "vit.onnx")
    assert not [*tmp_path.iterdir()]


def test_int8_inputs_are_refused_by_litert(tmp_path):
    model = keras_coda.coda_wrap(models.vit_backbone(num_layers=1))
    model.quantize("int8")
    with pytest.raises(ValueError, match="Quantize the weights alone"):
        keras_coda.export(model, tmp_path / "model.tflite", "litert")


def test_missing_packages(vit, tmp_path, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install keras-coda\["):
        keras_coda.export(vit, tmp_path / "model.onnx", "onnx")
