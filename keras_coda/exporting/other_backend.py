"""Export by a process that runs under another backend."""

import os
import subprocess
import sys
import tempfile

# Lines of a failed process's output that are shown.
_NUM_ERROR_LINES = 30


def export_under(
    backend,
    model,
    path,
    format,
    sequence_length,
    batch_size,
    outputs,
    from_strings,
    verbose,
):
    """`keras_coda.export` in a process with `KERAS_BACKEND=backend`."""
    with tempfile.TemporaryDirectory() as folder:
        model_path = os.path.join(folder, "model.keras")
        if verbose:
            print(f"Saving {model.name} for KERAS_BACKEND={backend} ...")
        model.save(model_path)
        command = [sys.executable, "-m", "keras_coda", "export", model_path]
        command += [path, "--format", format]
        if sequence_length is not None:
            command += ["--sequence-length", *_words(sequence_length)]
        if batch_size is not None:
            command += ["--batch-size", str(batch_size)]
        if outputs is not None:
            command += ["--outputs", *_words(outputs)]
        if from_strings:
            command.append("--from-strings")
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


def _words(value):
    """A value, or the values of a list, as words of a command line."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(item) for item in values]
