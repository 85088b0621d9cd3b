import gc
import os

import keras
import pytest
import tensorflow as tf

from keras_coda import models
from keras_coda.conversion import registry
from tests import small_minilm as small_minilm_package


def make_virtual_devices():
    """Before the backend looks for devices; for `test_distribution.py`."""
    if keras.backend.backend() == "jax":
        flags = [os.environ.get("XLA_FLAGS", "")]
        flags.append("--xla_force_host_platform_device_count=4")
        os.environ["XLA_FLAGS"] = " ".join(flags)
    elif keras.backend.backend() == "tensorflow":
        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration() for _ in range(2)],
        )


make_virtual_devices()

# Tiny models take longer to optimize than to run: each pipeline of texts, which
# KerasHub makes with TensorFlow on every backend, took seconds.
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

# Keras collects garbage whenever it quantizes a layer: not all that was
# imported, each time.
gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def small_minilm(tmp_path_factory):
    """A folder with the package of a small MiniLM, for `PYTHONPATH`."""
    folder = tmp_path_factory.mktemp("small_minilm")
    small_minilm_package.write(folder)
    return folder


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
