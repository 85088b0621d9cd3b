"""Executes the notebooks in examples and keeps their outputs.

    python docs/execute_notebooks.py [NAME ...]

In an environment with `pip install -e ".[test]"` and the packages of
examples/requirements.txt. Some minutes each on two cores. Each notebook has a
backend of its own; set KERAS_BACKEND for another. Keras downloads Fashion-MNIST
unless it is there already; see examples/README.md.
"""

import argparse
import os
import pathlib
import tempfile

import nbclient
import nbformat

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"


def read(name):
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def execute(notebook, folder):
    """Runs every cell in a new kernel, in `folder`; it finds `examples`.

    Cells with the tag `skip-execution`, which install packages, are left out.
    What libraries log is not kept.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    # The kernel adds the version of its Python.
    metadata = notebook.metadata.copy()
    paths = filter(None, [str(EXAMPLES), os.environ.get("PYTHONPATH")])
    nbclient.NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)})
    notebook.metadata = metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(filter(_is_kept, cell.outputs))


def _is_kept(output):
    # In a notebook, TensorFlow logs to both streams.
    is_log = output.get("text", "").startswith("INFO:tensorflow:")
    return output.get("name") != "stderr" and not is_log


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
    parser.add_argument("names", metavar="NAME", nargs="*", default=names)
    for name in parser.parse_args().names:
        notebook = read(name)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, folder)
        nbformat.write(notebook, EXAMPLES / f"{name}.ipynb")
        print(f"examples/{name}.ipynb", flush=True)


if __name__ == "__main__":
    main()
