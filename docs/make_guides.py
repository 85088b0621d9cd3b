"""Writes the notebooks of examples as scripts in the form of keras.io.

    python docs/make_guides.py

One script each in docs/keras_io, as keras.io makes its own notebooks from.
They hold no outputs: keras.io runs them. Cells with the tag `repository-only`
are left out, and so is the notebook of Whisper, which imports other examples.
"""

import pathlib
from typing import NamedTuple

import nbformat

FOLDER = pathlib.Path(__file__).parent / "keras_io"
EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
HEADER = """\
Title: {title}
Author: The keras_coda maintainers
Date created: {created}
Last modified: {modified}
Description: {description}
Accelerator: {accelerator}
"""


class Guide(NamedTuple):
    """What keras.io's header says of a notebook beside its title.

    Attributes:
        description: str, one sentence.
        modified: str, a date.
        accelerator: `"GPU"`, `"TPU"` or `"None"`.
    """

    description: str
    modified: str = "2026/11/26"
    created: str = "2026/11/20"
    accelerator: str = "None"


GUIDES = {
    "text_classification_bert": Guide(
        "Fine-tune a BERT with conditional adapters and make it fast."
    ),
    "image_classification_vit": Guide(
        "Teach a ViT new classes and compute half of its patches."
    ),
    "seq2seq_t5": Guide("Make the encoder of a T5 that generates text fast."),
    "prompts_llm": Guide(
        "Compute an eighth of the prompts of a language model."
    ),
}


def script(name):
    """The content of the script of a notebook."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    first, *cells = notebook.cells
    heading, introduction = first.source.split("\n", 1)
    title = heading.removeprefix("# ")
    header = HEADER.format(title=title, **GUIDES[name]._asdict())
    blocks = [_text(header), _text(f"## Introduction\n{introduction}")]
    blocks += [_block(cell) for cell in cells if not _is_left_out(cell)]
    return "\n".join(blocks)


def _is_left_out(cell):
    return "repository-only" in cell.metadata.get("tags", ())


def _block(cell):
    if cell.cell_type == "markdown":
        return _text(cell.source)
    if cell.source.startswith("%"):
        # From the index, which keras.io's readers have.
        command = cell.source.replace("%", "").replace('"..[', '"keras-coda[')
        return _text(command, "shell")
    return f"{cell.source}\n"


def _text(content, language=""):
    if '"""' in content or "\\" in content:
        raise ValueError(f"Not for a docstring: {content}")
    return f'"""{language}\n{content.strip()}\n"""\n'


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in GUIDES:
        (FOLDER / f"{name}.py").write_text(script(name))


if __name__ == "__main__":
    main()
