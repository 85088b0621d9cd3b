import pkgutil

from keras_coda.conversion import families
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.conversion.family import all_subclasses
from tests.conversion import families as family_tests


def test_every_family_has_a_test():
    names = {module.name for module in pkgutil.iter_modules(families.__path__)}
    tests = {
        module.name for module in pkgutil.iter_modules(family_tests.__path__)
    }
    assert names
    assert {f"test_{name}" for name in names} <= tests


def test_every_family_is_whole():
    for backbone_cls in all_subclasses(CodaBackbone):
        dense = backbone_cls.family.backbone_cls
        assert backbone_cls.__name__ == f"Coda{dense.__name__}"
        tasks = [
            task
            for task in all_subclasses(CodaTask)
            if task.backbone_cls is backbone_cls
        ]
        assert tasks, f"{backbone_cls.__name__} has no task"
        for task in tasks:
            dense_task = task.__bases__[1]
            assert dense_task.backbone_cls is dense
            assert task.__name__ == f"Coda{dense_task.__name__}"
