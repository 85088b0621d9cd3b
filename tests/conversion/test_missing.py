"""Classes that the installed KerasHub lacks, or that are taken out of it."""

import os
import pathlib
import re
import subprocess
import sys

import keras
import keras_hub
import pytest

import keras_coda
from keras_coda.conversion.missing import FIRST_VERSIONS
from keras_coda.conversion.missing import leave_out
from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import bert_backbone

FILES = pathlib.Path(__file__).with_name("files")
FAMILIES = pathlib.Path(__file__).parents[2] / "docs" / "families.md"


def as_numbers(version):
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


@pytest.mark.parametrize("name, version", FIRST_VERSIONS.items())
def test_first_versions(name, version):
    installed = as_numbers(keras_hub.__version__)
    assert hasattr(keras_hub.models, name) == (installed >= as_numbers(version))


def test_all_that_the_oldest_version_lacks_has_a_first_version():
    # The page is written with the newest KerasHub.
    names = re.findall(
        r"\w+(?:Backbone|Encoder|Embedder|LM|Classifier|ToText)\b",
        FAMILIES.read_text().partition("## Models that cannot")[0],
    )
    assert {"ViTBackbone", "T5Seq2SeqLM", "MoonshineAudioToText"} <= set(names)
    missing = [name for name in names if not hasattr(keras_hub.models, name)]
    assert set(missing) <= set(FIRST_VERSIONS)


IN_AN_OLDER_KERAS_HUB = """
import keras
import keras_hub

for name in ("AlbertBackbone", "BertTextEmbedder", "T5Seq2SeqLM"):
    vars(keras_hub.models).pop(name, None)

import keras_coda

names = [model.backbone for model in keras_coda.supported_models()]
assert "BertBackbone" in names and "T5Backbone" in names, names
assert "AlbertBackbone" not in names, names
print(keras_coda.supported_models())


def fails(function, *args):
    try:
        function(*args)
    except ImportError as error:
        print(error)
    else:
        raise AssertionError(args)


fails(getattr, keras_coda.models, "CodaAlbertBackbone")
fails(getattr, keras_coda.models, "CodaBertTextEmbedder")
fails(keras.models.load_model, "FILES/t5.keras")
"""


@same_on_every_backend
def test_what_is_missing_does_not_break_the_import():
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_AN_OLDER_KERAS_HUB.replace("FILES", str(FILES)),
        ],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    table, albert, embedder, t5 = run.stdout.strip().rsplit("\n", 3)
    installed = f"KerasHub {keras_hub.__version__}"
    note = table.rsplit("\n", 1)[1]
    assert note.startswith(f"{installed} lacks AlbertBackbone, BertTextEmbed")
    assert "T5Seq2SeqLM (since 0.32)" in note
    assert note.endswith('Run `pip install --upgrade "keras-hub>=0.32"`.')
    assert "needs a KerasHub, newer than this one, which has" in albert
    assert "Run `pip install --upgrade keras-hub`" in albert
    assert 'Run `pip install --upgrade "keras-hub>=0.30"`' in embedder
    assert "`keras_coda.models.CodaT5Seq2SeqLM` needs a KerasHub 0.32" in t5
    assert t5.endswith(f"Received: {installed}")


@pytest.fixture
def without_embedder(own_registry, monkeypatch):
    """As if KerasHub had no `BertTextEmbedder`."""
    classes = vars(keras_coda.models)
    monkeypatch.delitem(classes, "CodaBertTextEmbedder", raising=False)
    leave_out("BertTextEmbedder")


def test_attribute_of_a_missing_class(without_embedder):
    with pytest.raises(ImportError, match="KerasHub 0.30 or newer.*Received"):
        from keras_coda.models import CodaBertTextEmbedder  # noqa: F401
    with pytest.raises(AttributeError, match="no attribute 'CodaNothing'"):
        keras_coda.models.CodaNothing


def test_file_of_a_missing_class(without_embedder):
    serialized = {
        "module": "keras_coda.models",
        "class_name": "CodaBertTextEmbedder",
        "registered_name": "keras_coda>CodaBertTextEmbedder",
        "config": {},
    }
    with pytest.raises(ImportError, match="needs a KerasHub 0.30 or newer"):
        keras.saving.deserialize_keras_object(serialized)


def test_unsupported_models_name_what_is_missing(without_embedder):
    class OwnEmbedder(keras_hub.models.BertTextClassifier):
        pass

    task = OwnEmbedder(bert_backbone(), num_classes=2)
    expected = r"type OwnEmbedder. KerasHub .* BertTextEmbedder \(since 0.30\)"
    with pytest.raises(TypeError, match=expected):
        keras_coda.coda_wrap(task)
    backbone = keras_hub.models.FNetBackbone(10, 1, 8, 16)
    with pytest.raises(TypeError, match="FNetBackbone cannot") as error:
        keras_coda.coda_wrap(backbone)
    assert "lacks" not in str(error.value)


def test_a_class_of_ones_own_takes_the_place(without_embedder):
    class BertTextEmbedder(keras_hub.models.BertTextClassifier):
        pass

    keras_coda.conversion.register_task(BertTextEmbedder)
    coda = keras_coda.coda_wrap(
        BertTextEmbedder(bert_backbone(), num_classes=2)
    )
    assert type(coda) is keras_coda.models.CodaBertTextEmbedder
    assert "BertTextEmbedder (" not in str(keras_coda.supported_models())
