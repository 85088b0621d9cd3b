"""Writes docs/families.md from the families that are registered.

python docs/make_families.py
"""

import pathlib

import keras_coda
from keras_coda.conversion.unsupported import UNSUPPORTED

PATH = pathlib.Path(__file__).with_name("families.md")

HEAD = """# Models that `coda_wrap` converts

Written by `python docs/make_families.py`;
`print(keras_coda.supported_models())` prints it for the KerasHub that you have
installed. Each converts at `reduction_factor=1` to what it computes, trains,
calibrates, aligns, is saved to `.keras`, presets and adapter files, and is
exported to a SavedModel: the tests check it for each row, on a tiny model.

Decoders are not routed; their blocks get dense adapters.

"""


def content():
    """The whole page."""
    lines = [HEAD, keras_coda.supported_models().to_markdown(), "\n"]
    lines.append("## Models that cannot be routed\n\n")
    lines += [f"- {name}: {why}.\n" for name, why in UNSUPPORTED.items()]
    return "".join(lines)


if __name__ == "__main__":
    PATH.write_text(content())
