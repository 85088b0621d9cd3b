"""The command `keras-coda`, for `.keras` files.

    keras-coda accelerate model.keras fast.keras --data texts.csv --speedup 2.5
    keras-coda compare model.keras fast.keras --data test.csv --label topic
    keras-coda inspect fast.keras --sequence-length 128
    keras-coda export fast.keras served/1 --sequence-length 128

The backend is that of `KERAS_BACKEND`. What goes wrong is one line on the error
stream, and exit code 1; wrong arguments are exit code 2.
"""

import argparse
import sys

# First: it says what to install where KerasHub is missing.
from keras_coda import conversion  # noqa: F401
from keras_coda.commands import accelerate
from keras_coda.commands import compare
from keras_coda.commands import export
from keras_coda.commands import inspect

COMMANDS = (accelerate, compare, inspect, export)


def main(arguments=None):
    """Runs the command; `arguments` are those of the process by default."""
    parser = argparse.ArgumentParser(
        prog="keras-coda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    arguments = parser.parse_args(arguments)
    try:
        arguments.run(arguments)
    except (
        ImportError,
        OSError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        sys.exit(f"{type(error).__name__}: {error}")
