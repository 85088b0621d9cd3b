"""What works where KerasHub is not installed, and what the rest says."""

import os
import subprocess
import sys

from tests.backend_helpers import same_on_every_backend

STATEMENTS = [
    "keras_coda.coda_wrap",
    "from keras_coda import export",
    "from keras_coda.training import align",
    "from keras_coda.speech import WhisperTranscriber",
    "import keras_coda.commands",
]
CODE = f"""
import importlib.util
import sys

find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *arguments: (
    None if name == "keras_hub" else find_spec(name, *arguments)
)
sys.modules["keras_hub"] = None

import keras
import keras_coda

block = keras_coda.layers.TransformerBlock(num_heads=2, intermediate_dim=8)
layer = keras_coda.layers.ConditionalTransformerBlock(block, reduction_factor=2)
print(tuple(layer(keras.ops.ones((1, 4, 6))).shape), keras_coda.__all__)
for statement in {STATEMENTS}:
    try:
        exec(statement)
    except ImportError as error:
        print(error)
"""


@same_on_every_backend
def test_without_keras_hub():
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    layers, *errors = run.stdout.splitlines()
    assert layers.startswith("(1, 4, 6)") and "coda_wrap" not in layers
    assert len(errors) == len(STATEMENTS)
    for error in errors:
        assert "KerasHub. Run `pip install keras-coda[hub]`." in error
