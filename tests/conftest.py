import os

import keras
import pytest

from keras_coda import models
from keras_coda.conversion import registry


def make_virtual_devices():
    """Before the backend looks for devices; for `test_distribution.py`."""
    if keras.backend.backend() == "jax":
        flags = [os.environ.get("XLA_FLAGS", "")]
        flags.append("--xla_force_host_platform_device_count=4")
        os.environ["XLA_FLAGS"] = " ".join(flags)
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration() for _ in range(2)],
        )


make_virtual_devices()


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it.

    KerasHub looks for the class of a task among all that are registered, in no
    order: an own class would be found in the place of ours.
    """
    for module, name in (
        (registry, "backbone_classes"),
        (registry, "task_classes"),
        (models, "missing_classes"),
    ):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    custom_objects = keras.saving.get_custom_objects()
    before = dict(custom_objects)
    yield
    custom_objects.clear()
    custom_objects.update(before)
