import json
import pathlib
import zipfile

import keras
import keras_hub
import pytest

import keras_coda
from keras_coda import commands
from tests.conversion import models
from tests.conversion.tiny import tiny_models
from tests.exporting import artefacts


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "vit.keras"
    artefacts.vit().save(path)
    return str(path)


def test_inspect(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    commands.main(["inspect", path])
    shown = capsys.readouterr().out
    model = keras.models.load_model(path, compile=False)
    summary = model.trainable_summary(print_fn=lambda text: None)
    for text in (
        "CodaViTImageClassifier",
        "ViTBackbone",
        "2, 3",
        "k_to_all",
        "adapter size                   │ 64",
        f"{summary.trainable:,} ({summary.percentage:.2f}%)",
        f"{model.count_params():,}",
        "images: (None, 16, 16, 3) float32",
        "predictions: (None, 3) float32",
    ):
        assert text in shown, shown


def test_inspect_a_dense_model(tmp_path, capsys):
    path = str(tmp_path / "dense.keras")
    models.vit_backbone().save(path)
    commands.main(["inspect", path])
    shown = capsys.readouterr().out
    assert "ViTBackbone" in shown
    assert "reduction factor" not in shown
    assert "yes, see `keras_coda.training.accelerate`" in shown


def test_inspect_a_model_around_a_backbone(tmp_path, capsys):
    backbone = keras_coda.coda_wrap(models.vit_backbone(), reduction_factor=3)
    path = str(tmp_path / "model.keras")
    layers = [keras.layers.Rescaling(0.1), backbone, keras.layers.Flatten()]
    image = keras.Input(models.vit_inputs().shape[1:])
    keras.Sequential([image, *layers]).save(path)
    commands.main(["inspect", path, "--json"])
    described = json.loads(capsys.readouterr().out)
    assert described["class"] == "Sequential"
    assert described["family"] == "ViTBackbone"
    assert described["reduction factor of each block"] == "3, 3"


def test_inspect_counts(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    commands.main(["inspect", path, "--sequence-length", "17"])
    shown = capsys.readouterr().out
    model = keras.models.load_model(path, compile=False)
    counted = keras_coda.analysis.flops(model)
    assert f"dense with adapters / CoDA: {counted.ratio:.2f}" in shown
    commands.main(["inspect", path, "--json"])
    described = json.loads(capsys.readouterr().out)
    assert described["class"] == "CodaViTImageClassifier"


def test_inspect_counts_a_prompt(tmp_path, capsys):
    backbone = tiny_models()["LlamaBackbone"].make()
    dense = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    path = str(tmp_path / "llama.keras")
    model = keras_coda.coda_wrap(dense, reduction_factor=3)
    model.save(path)
    commands.main(["inspect", path, "--sequence-length", "12", "--json"])
    described = json.loads(capsys.readouterr().out)
    model.prompt_length = 12
    ratio = keras_coda.analysis.flops(model, 12).ratio
    assert described["speedup by arithmetic"] == f"{ratio:.2f}" > "1.00"
    with pytest.raises(SystemExit, match="Received: sequence_length=-5"):
        commands.main(["inspect", path, "--sequence-length", "-5"])


def test_export_passes_its_arguments(path, monkeypatch):
    received = {}
    monkeypatch.setattr(
        commands.export,
        "export",
        lambda model, path, **kwargs: received.update(path=path, **kwargs),
    )
    commands.main(["export", path, "out"])
    assert received == {
        "path": "out",
        "format": None,
        "sequence_length": None,
        "batch_size": None,
        "outputs": None,
        "from_strings": False,
    }
    commands.main(
        ["export", path, "out", "--format", "onnx", "--from-strings"]
        + ["--sequence-length", "8", "--batch-size", "2", "--outputs", "a", "b"]
    )
    assert received == {
        "path": "out",
        "format": "onnx",
        "sequence_length": 8,
        "batch_size": 2,
        "outputs": ["a", "b"],
        "from_strings": True,
    }
    commands.main(["export", path, "out", "--sequence-length", "8", "3"])
    assert received["sequence_length"] == [8, 3]


def test_errors_are_a_message(path, tmp_path, capsys):
    with pytest.raises(SystemExit, match="ValueError: .*must end with"):
        commands.main(["export", path, str(tmp_path), "--format", "onnx"])
    with pytest.raises(SystemExit, match="FileExistsError"):
        commands.main(["export", path, f"{path}/below"])
    with pytest.raises(SystemExit):
        commands.main(["export", path, "out", "--format", "pickle"])
    assert "invalid choice: 'pickle'" in capsys.readouterr().err


def test_what_is_no_model(path, tmp_path):
    with pytest.raises(SystemExit, match="There is no file"):
        commands.main(["inspect", str(tmp_path / "none.keras")])
    half = tmp_path / "half.keras"
    half.write_bytes(pathlib.Path(path).read_bytes()[:1000])
    archive = tmp_path / "archive.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "no model")
    for other in (half, archive, tmp_path):
        with pytest.raises(SystemExit, match="that `model.save` wrote"):
            commands.main(["inspect", str(other)])
