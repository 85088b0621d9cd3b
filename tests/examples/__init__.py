import pathlib
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "examples"

# Where Python finds the modules of a script that it runs.
sys.path.insert(0, str(FOLDER))
