"""What is said of the package outside of its code."""

import pathlib
import re
import tomllib

import keras_coda

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {keras_coda.__version__}\n" in citation
    changes = re.search(
        r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert changes[1] == keras_coda.__version__


def test_no_version_is_exact():
    extras = PROJECT["optional-dependencies"]
    for extra in (
        "hub",
        "plot",
        "tensorflow",
        "jax",
        "torch",
        "export",
        "docs",
    ):
        for requirement in extras[extra]:
            assert "==" not in requirement
    keras, hub = PROJECT["dependencies"][0], extras["hub"][0]
    assert keras.endswith(",<4") and hub.endswith(",<1")
    # `.ci/oldest` installs what it reads there.
    assert re.fullmatch(r"keras>=[\d.]+,<4", keras)
    assert re.fullmatch(r"keras-hub>=[\d.]+,<1", hub)


def test_contributing_names_the_oldest_versions():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    requirements = [
        PROJECT["dependencies"][0],
        PROJECT["optional-dependencies"]["hub"][0],
    ]
    for requirement in requirements:
        oldest = re.search(r">=([\d.]+)", requirement)[1]
        assert f"{oldest} (" in page
