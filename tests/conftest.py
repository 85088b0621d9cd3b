import keras
import pytest

from keras_coda.conversion import registry


@pytest.fixture(autouse=True)
def fixed_seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def own_registry(monkeypatch):
    """What a test registers is forgotten after it.

    KerasHub looks for the class of a task among all that are registered, in no
    order: an own class would be found in the place of ours.
    """
    for name in ("backbone_classes", "task_classes", "missing_families"):
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    custom_objects = keras.saving.get_custom_objects()
    before = dict(custom_objects)
    yield
    custom_objects.clear()
    custom_objects.update(before)
