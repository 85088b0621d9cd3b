import inspect

from keras_coda.conversion.coda_model import CodaModel
from keras_coda.conversion.coda_model import validate_converted


class CodaTask(CodaModel):
    """Mixin that makes a KerasHub task one with a converted backbone.

    `register_task` makes `class CodaXTask(CodaTask, XTask)` with `backbone_cls`
    set to the family's `CodaBackbone`; KerasHub's `from_preset` finds the class
    by that attribute.
    """

    def __init__(self, *args, **kwargs):
        # Not every task takes its backbone first.
        signature = inspect.signature(super().__init__)
        backbone = signature.bind(*args, **kwargs).arguments["backbone"]
        if isinstance(backbone, dict):
            # What `keras.models.clone_model` passes.
            raise NotImplementedError(
                "A converted task is made from its backbone. To copy one, use "
                "`type(task).from_config(task.get_config())`, whose weights "
                "are new."
            )
        validate_converted("backbone", backbone)
        super().__init__(*args, **kwargs)
        # So that a change of the backbone reaches the task.
        backbone.follow(self)
