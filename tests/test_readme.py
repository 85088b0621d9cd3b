"""What README says is what is run."""

import pathlib
import re

import keras_hub
import numpy as np

from tests.conversion.models import bert_backbone

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_test_command():
    _, test_command, *_ = blocks("bash")
    assert "-m tests" in test_command
    assert test_command in (ROOT / ".ci" / "run").read_text()


def test_usage_example(monkeypatch, tmp_path, capsys):
    """Runs the example, with a tiny model in the place of a download."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=words)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=8
    )

    def from_preset(preset, num_classes):
        return keras_hub.models.BertTextClassifier(
            bert_backbone(),
            num_classes=num_classes,
            preprocessor=preprocessor,
        )

    monkeypatch.setattr(
        keras_hub.models.BertTextClassifier, "from_preset", from_preset
    )
    monkeypatch.chdir(tmp_path)
    usage, recipes = blocks("python")
    variables = {}
    exec(usage, variables)
    assert "trainable" in capsys.readouterr().out
    outputs = variables["classifier"].predict(["what a film"], verbose=0)
    assert np.all(np.isfinite(outputs))
    assert (tmp_path / "films.safetensors").exists()

    dense = from_preset("any", num_classes=2)
    variables["dense_classifier"] = dense
    variables["texts"], variables["labels"] = ["a film"] * 4, [0, 1, 0, 1]
    variables["inputs"] = preprocessor(variables["texts"])
    exec(recipes, variables)
    assert variables["coda"].reduction_factor == 4
