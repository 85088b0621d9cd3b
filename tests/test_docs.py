"""The documents say what the code does."""

import os
import pathlib
import re
import subprocess
import sys

import keras_coda
from tests.backend_helpers import same_on_every_backend

ROOT = pathlib.Path(keras_coda.__file__).parents[1]


@same_on_every_backend
def test_adding_a_family(tmp_path):
    """The page's code runs, in a process of its own: it registers classes."""
    page = (ROOT / "docs/adding_a_family.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) > 4
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks))
    process = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]


def test_guides():
    """Those for keras.io are what the notebooks are."""
    script = "from make_guides import *; print(*map(script, GUIDES))"
    written = _run_in_docs(script)
    names = sorted(path.stem for path in (ROOT / "examples").glob("*.ipynb"))
    guides = [ROOT / f"docs/keras_io/{name}.py" for name in names]
    assert sorted((ROOT / "docs/keras_io").glob("*.py")) == guides
    for guide in guides:
        content = guide.read_text()
        compile(content, guide.name, "exec")
        assert content in written


def test_families():
    """In a process of its own: other tests register families."""
    script = "import make_families; print(make_families.content(), end='')"
    assert _run_in_docs(script) == (ROOT / "docs/families.md").read_text()


def _run_in_docs(script):
    process = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT / "docs",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process.stdout
