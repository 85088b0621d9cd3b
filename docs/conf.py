"""Sphinx: the site of the documentation.

    sphinx-build -W --keep-going -c docs . docs/_build/html

The source folder is the root of the repository, so that a link from one page
to another, to a notebook or to a file is the same here and on GitHub.
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
DOCS = pathlib.Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))

import keras_coda

project = "keras_coda"
author = "The keras_coda maintainers"
copyright = author
version = release = keras_coda.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "benchmark_results",
    "docstrings",
    "llms_txt",
    "public_names",
]
root_doc = "docs/index"
include_patterns = [
    "*.md",
    "benchmarks/**.md",
    "docs/**.md",
    "examples/**.md",
    "examples/*.ipynb",
]
exclude_patterns = [
    ".*",
    "**/.*",
    "benchmarks/results/*-quick-*",
    "docs/_build",
    "docs/keras_io",
]
nitpicky = True
# The classes of converted models are made when KerasHub's are there.
nitpick_ignore_regex = [("py:obj", r"keras_coda\.models\..*")]

# Headings have the anchors that GitHub gives them.
myst_heading_anchors = 4
# The outputs are in the notebooks; the tests execute them.
nb_execution_mode = "off"

autodoc_default_options = {
    "inherited-members": True,
    "member-order": "bysource",
    "members": True,
}
autodoc_inherit_docstrings = False
autodoc_typehints = "none"
napoleon_attr_annotations = False
napoleon_numpy_docstring = False
napoleon_custom_sections = [
    ("Attributes", "params_style"),
    ("Call arguments", "params_style"),
    "Reference",
]

html_theme = "furo"
html_title = f"{project} {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
# Redirects from the root to the first page.
html_extra_path = ["_root"]
html_copy_source = False
pygments_dark_style = "a11y-dark"
