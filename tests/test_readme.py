"""What README says is what is run."""

import pathlib
import re

import keras
import keras_hub
import numpy as np

import keras_coda
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import bert_backbone
from tests.conversion.test_causal_lm import TEXTS
from tests.conversion.test_causal_lm import make
from tests.conversion.test_causal_lm import preprocessor

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_ci_runs_the_test_command():
    (test_command,) = [x for x in blocks("bash") if "-m tests" in x]
    assert test_command in (ROOT / ".ci" / "run").read_text()


@slow_to_compile
def test_usage_example(monkeypatch, tmp_path, capsys):
    """Runs the example, with a tiny model in the place of a download."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "film", "fine"]
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=words)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=8
    )

    def from_preset(preset, num_classes):
        return keras_hub.models.BertTextClassifier(
            # Wide, so that adapters cost less than the blocks.
            bert_backbone(hidden_dim=256, intermediate_dim=1024),
            num_classes=num_classes,
            preprocessor=preprocessor,
        )

    monkeypatch.setattr(
        keras_hub.models.BertTextClassifier, "from_preset", from_preset
    )
    monkeypatch.chdir(tmp_path)
    usage, from_dense, _, reading_all = blocks("python")
    variables = {"texts": ["a film", "fine film"] * 8, "labels": [0, 1] * 8}
    exec(usage, variables)
    printed = capsys.readouterr().out
    assert "speedup of the encoder by arithmetic: 2." in printed
    outputs = variables["coda"].predict(["what a film"], verbose=0)
    assert np.all(np.isfinite(outputs))
    assert (tmp_path / "films.keras").exists()

    dense = from_preset("any", num_classes=2)
    exec(from_dense, {**variables, "fine_tuned_classifier": dense})

    tokens = preprocessor(variables["texts"])
    tags = np.zeros((16, 8), "int32")
    exec(
        reading_all,
        {
            **variables,
            "keras": keras,
            "backbone": dense.backbone,
            "tokens": tokens,
            "tag_ids": tags,
        },
    )


@slow_to_compile
def test_language_model(monkeypatch):
    dense = make("Llama3", preprocessor(sequence_length=512))
    monkeypatch.setattr(
        keras_hub.models.Llama3CausalLM, "from_preset", lambda name: dense
    )
    _, _, language_model, _ = blocks("python")
    variables = {
        "keras_hub": keras_hub,
        "keras_coda": keras_coda,
        "questions": TEXTS["prompts"],
        "answers": TEXTS["responses"],
    }
    exec(language_model, variables)
    assert variables["coda"].prompt_length == 448
