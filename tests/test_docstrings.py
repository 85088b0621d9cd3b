"""Every public object has an Example, and every Example runs."""

import doctest
import inspect

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import slow_to_compile


def public_objects(module, prefix):
    objects = {}
    for name in module.__all__:
        value = getattr(module, name)
        path = f"{prefix}.{name}"
        if inspect.ismodule(value):
            objects.update(public_objects(value, path))
        else:
            objects[path] = value
    return objects


PUBLIC = public_objects(keras_coda, "keras_coda")


# They compile for long, and their parts are tested on every backend.
SLOW_TO_COMPILE = (
    "keras_coda.analysis.plot_budget",
    "keras_coda.callbacks.ReductionSchedule",
    "keras_coda.speech.WhisperTranscriber",
    "keras_coda.training.accelerate",
    "keras_coda.training.calibrate",
    "keras_coda.training.pretrain",
)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[slow_to_compile] * (name in SLOW_TO_COMPILE))
        for name in PUBLIC
    ],
)
def test_example(name, own_registry):
    public = PUBLIC[name]
    test = doctest.DocTestParser().get_doctest(
        inspect.getdoc(public),
        globs={
            "keras": keras,
            "keras_coda": keras_coda,
            "keras_hub": keras_hub,
            "np": np,
        },
        name=name,
        filename=inspect.getsourcefile(public),
        lineno=0,
    )
    assert test.examples, f"{name} has no Example"
    report = []
    doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not report, "".join(report)
