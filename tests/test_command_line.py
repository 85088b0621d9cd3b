import pathlib
import zipfile

import keras
import pytest

from keras_coda import command_line
from tests.conversion import models
from tests.exporting import artefacts


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "vit.keras"
    artefacts.vit().save(path)
    return str(path)


def test_inspect(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    command_line.main(["inspect", path])
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
    command_line.main(["inspect", path])
    shown = capsys.readouterr().out
    assert "ViTBackbone" in shown
    assert "reduction factor" not in shown


def test_export_passes_its_arguments(path, monkeypatch):
    received = {}
    monkeypatch.setattr(
        command_line,
        "export",
        lambda model, path, **kwargs: received.update(path=path, **kwargs),
    )
    command_line.main(["export", path, "out"])
    assert received == {
        "path": "out",
        "format": "tf_saved_model",
        "sequence_length": None,
        "batch_size": None,
        "outputs": None,
        "from_strings": False,
    }
    command_line.main(
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
    command_line.main(["export", path, "out", "--sequence-length", "8", "3"])
    assert received["sequence_length"] == [8, 3]


def test_errors_are_a_message(path, tmp_path, capsys):
    with pytest.raises(SystemExit, match="ValueError: .*must end with"):
        command_line.main(["export", path, str(tmp_path), "--format", "onnx"])
    with pytest.raises(SystemExit, match="FileExistsError"):
        command_line.main(["export", path, f"{path}/below"])
    with pytest.raises(SystemExit):
        command_line.main(["export", path, "out", "--format", "pickle"])
    assert "invalid choice: 'pickle'" in capsys.readouterr().err


def test_what_is_no_model(path, tmp_path):
    with pytest.raises(SystemExit, match="There is no file"):
        command_line.main(["inspect", str(tmp_path / "none.keras")])
    half = tmp_path / "half.keras"
    half.write_bytes(pathlib.Path(path).read_bytes()[:1000])
    archive = tmp_path / "archive.keras"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "no model")
    for other in (half, archive, tmp_path):
        with pytest.raises(SystemExit, match="that `model.save` wrote"):
            command_line.main(["inspect", str(other)])
