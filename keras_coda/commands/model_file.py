"""`.keras` files that a command reads and writes."""

import os
import tempfile
import warnings
import zipfile

import keras


def load_model(path):
    """The model; Keras says of whatever is no model that it is not found."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"There is no file {path!r}.")
    if not path.endswith(".keras") or not _has_model(path):
        raise ValueError(
            "A model must be a whole file that `model.save` wrote, with a name "
            f"that ends with '.keras'. Received: {path!r}"
        )
    with warnings.catch_warnings():
        # Which is not needed here.
        warnings.filterwarnings("ignore", "Skipping variable loading for opt")
        return keras.models.load_model(path, compile=False)


def _has_model(path):
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return "config.json" in file.namelist()


def validate_output(path):
    """Before hours of work whose result could not be written."""
    if not path.endswith(".keras"):
        raise ValueError(
            f"OUT.keras must have a name that ends with '.keras'. Received: "
            f"{path!r}"
        )
    folder = os.path.dirname(path) or "."
    if not os.access(folder, os.W_OK):
        raise FileNotFoundError(
            f"There is no folder {folder!r}, or nothing may be written there."
        )


def save_model(model, path):
    """Writes a file whole or not at all."""
    folder = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as unfinished:
        whole = os.path.join(unfinished, os.path.basename(path))
        model.save(whole)
        os.replace(whole, path)
