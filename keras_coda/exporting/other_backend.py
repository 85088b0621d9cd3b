"""Export by a process that runs under another backend."""

import os
import subprocess
import sys
import tempfile

# Lines of a failed process's output that are shown.
_NUM_ERROR_LINES = 30


def export_under(backend, model, path, verbose, **arguments):
    """`keras_coda.export` in a process with `KERAS_BACKEND=backend`."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = os.path.join(folder, "model.keras")
        if verbose:
            print(f"Saving {model.name} for KERAS_BACKEND={backend} ...")
        model.save(model_path)
        command = [sys.executable, "-m", "keras_coda", "export"]
        command += [model_path, path, *_options(arguments)]
        if verbose:
            print(f"Exporting under KERAS_BACKEND={backend} ...")
        process = subprocess.run(
            command,
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    if process.returncode != 0:
        lines = process.stdout.splitlines()[-_NUM_ERROR_LINES:]
        raise RuntimeError(
            f"The export under KERAS_BACKEND={backend} failed with exit "
            f"status {process.returncode}. Its output ends with:\n"
            + "\n".join(lines)
        )


def _options(arguments):
    """Arguments of `export` as options of `keras-coda export`."""
    options = []
    for name, value in arguments.items():
        if value is None or value is False:
            continue
        options.append("--" + name.replace("_", "-"))
        if value is not True:
            values = value if isinstance(value, (list, tuple)) else [value]
            options += map(str, values)
    return options
