from keras_coda.conversion.coda_model import CodaModel


class CodaTask(CodaModel):
    """Mixin that makes a KerasHub task one with a converted backbone.

    A family declares `class CodaXTask(CodaTask, keras_hub.models.XTask)` with
    `backbone_cls` set to its `CodaBackbone`; KerasHub's `from_preset` finds the
    class by that attribute.
    """

    def __init__(self, backbone, *args, **kwargs):
        super().__init__(backbone, *args, **kwargs)
        # So that a change of `backbone.reduction_factor` reaches the task.
        backbone._tasks.add(self)

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens: a number, or one per block.

        Setting it takes effect from the next step of `fit` or `predict` on.
        """
        return self.backbone.reduction_factor

    @reduction_factor.setter
    def reduction_factor(self, value):
        self.backbone.reduction_factor = value
