"""The families that are known, and the classes that were made for them."""

# From the dense class to what `coda_wrap` makes of it.
backbone_classes = {}
task_classes = {}


def tasks_of(backbone_cls):
    """The `CodaTask` classes of a `CodaBackbone` class."""
    return [
        cls for cls in task_classes.values() if cls.backbone_cls is backbone_cls
    ]
