"""`keras-coda accelerate` and `compare`, from CSV to a fast `.keras` file."""

import csv
import json

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda import commands
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import WORDS
from tests.conversion.models import bert_backbone
from tests.conversion.models import text_classifier
from tests.conversion.models import vit_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dense model, and texts with what it says about them."""
    folder = tmp_path_factory.mktemp("commands")
    keras.utils.set_random_seed(0)
    model = text_classifier(num_layers=3)
    model.save(folder / "dense.keras")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=8)) for _ in range(23)]
    # Longer than what Python takes for a field of a CSV file.
    texts.append(" ".join([WORDS[0]] * 100_000))
    labels = model.predict(texts, verbose=0).argmax(axis=1)
    columns = ("words", "topic", "other")
    write(folder / "texts.csv", columns, zip(texts, labels, texts[::-1]))
    return folder


def write(path, columns, rows):
    """A CSV file as spreadsheets write it, with a byte-order mark."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs a command in the folder; returns what it printed."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        commands.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run


ACCELERATE = ("accelerate", "dense.keras", "fast.keras", "--data", "texts.csv")
COMPARE = ("compare", "dense.keras", "dense.keras", "--data", "texts.csv")


@slow_to_compile
def test_a_dense_model_gets_fast(run, folder):
    sizes = ("--adapter-dim", 2, "--shortcut-dim", 2)
    shown = run(*ACCELERATE, "--speedup", 1.2, "--epochs", 1, *sizes)
    assert "speedup of the encoder" in shown
    assert "Saved to 'fast.keras'" in shown
    assert sorted(path.name for path in folder.iterdir()) == [
        "dense.keras",
        "fast.keras",
        "texts.csv",
    ]
    fast = keras.models.load_model(folder / "fast.keras", compile=False)
    assert type(fast).__name__ == "CodaBertTextClassifier"
    assert max(fast.reduction_factor) > 1

    # What is converted is calibrated for another speed.
    printed = run(
        "accelerate", "fast.keras", "faster.keras", "--json",
        *("--data", "texts.csv", "--speedup", 1.1)
    )  # fmt: skip
    record = json.loads(printed.splitlines()[-1])
    faster = keras.models.load_model(folder / "faster.keras", compile=False)
    factors = list(map(float, record["reduction_factor"]))
    assert faster.reduction_factor == factors
    assert record["speedup"] >= 1.1

    shown = run(
        "compare", "dense.keras", "fast.keras", "--data", "texts.csv",
        *("--label", "topic", "--rounds", 1)
    )  # fmt: skip
    assert "24 texts" in shown and "accuracy" in shown and "100.0%" in shown


@same_on_every_backend
def test_compare(run):
    arguments = (*COMPARE, "--rounds", 1)
    result = json.loads(run(*arguments, "--label", "topic", "--json"))
    assert result["agreement"] == 1.0 and result["texts"] == 24
    assert [model["accuracy"] for model in result["models"]] == [1.0, 1.0]
    assert result["models"][0]["speed"] == 1.0
    assert result["models"][1]["seconds a batch"] > 0
    # Pairs of texts, without labels.
    shown = run(*arguments, "--text", "words", "other")
    assert "100.0% classified alike" in shown and "accuracy" not in shown


@same_on_every_backend
@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_compare_heads_with_one_unit(run, folder, activation):
    made = text_classifier()
    model = keras_hub.models.BertTextClassifier(
        made.backbone,
        num_classes=1,
        activation=activation,
        preprocessor=made.preprocessor,
    )
    texts = WORDS[:4]
    median = np.median(model.predict(texts, verbose=0))
    if activation == "sigmoid":
        median = np.log(median / (1 - median))
    bias = model.get_layer("logits").bias
    bias.assign(bias - median)
    model.save(folder / "yes_or_no.keras")
    is_topic = model.predict(texts, verbose=0)[:, 0] > (
        0.5 if activation else 0
    )
    assert sum(is_topic) == 2
    write(folder / "two.csv", ("words", "is_topic"), zip(texts, 1 * is_topic))
    printed = run(
        "compare", "yes_or_no.keras", "yes_or_no.keras", "--rounds", 1,
        *("--data", "two.csv", "--label", "is_topic", "--json"),
    )  # fmt: skip
    assert json.loads(printed)["models"][0]["accuracy"] == 1.0


@same_on_every_backend
def test_bad_input_is_said_before_any_work(run, folder):
    def says(message, *arguments):
        with pytest.raises(SystemExit, match=message):
            run(*arguments)

    data = ("--data", "texts.csv")
    says("no column 'text'. It has: 'words', 'topic'", *ACCELERATE, "--text",
         "text")  # fmt: skip
    says("ends with '.keras'. Received: 'fast'", "accelerate", "dense.keras",
         "fast", *data)  # fmt: skip
    says("There is no folder 'none'", "accelerate", "dense.keras",
         "none/fast.keras", *data)  # fmt: skip
    says("`speedup` must be above 1", *ACCELERATE, "--speedup", "1")
    says("There is no file 'none.keras'", "compare", "none.keras",
         "dense.keras", *data)  # fmt: skip
    says("must hold the index of a class, from 0 to 2", *COMPARE, "--label",
         "words")  # fmt: skip
    says("At most two columns", *COMPARE, "--text", "words", "topic", "other")
    (folder / "empty.csv").write_text("words\n")
    (folder / "short.csv").write_text("words,topic\na,1\nb\n")
    (folder / "far.csv").write_text("words,topic\na,1\nb,7\n")
    (folder / "latin.csv").write_bytes("words\ncafé\n".encode("latin-1"))
    says("no CSV file in UTF-8", *COMPARE[:3], "--data", "latin.csv")
    says("no rows", *COMPARE[:3], "--data", "empty.csv")
    says("too few columns in row 2", *COMPARE[:3], "--data", "short.csv",
         "--text", "words", "topic")  # fmt: skip
    says("from 0 to 2. It has: 1 to 7", *COMPARE[:3], "--data", "far.csv",
         "--label", "topic")  # fmt: skip
    images = keras_hub.models.ViTImageClassifier(
        vit_backbone(),
        num_classes=2,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(
            keras_hub.layers.ViTImageConverter()
        ),
    )
    for name, model in (("backbone", bert_backbone()), ("images", images)):
        model.save(folder / f"{name}.keras")
        says("KerasHub task with a preprocessor, which makes tokens",
             "accelerate", f"{name}.keras", "fast.keras", *data)  # fmt: skip


@same_on_every_backend
def test_other_classes_are_not_compared(run, folder):
    other = keras_hub.models.BertTextClassifier(
        bert_backbone(),
        num_classes=2,
        preprocessor=text_classifier().preprocessor,
    )
    keras_coda.coda_wrap(other).save(folder / "other.keras")
    with pytest.raises(SystemExit, match="same classes. Received: 3 and 2"):
        run("compare", "dense.keras", "other.keras", "--data", "texts.csv")
