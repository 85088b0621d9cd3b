import inspect
import warnings

import keras

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

    def get_compile_config(self):
        config = super().get_compile_config()
        if not config:
            return config
        config["is_optimizer_built"] = self.optimizer.built
        if hasattr(self, "sampler"):
            sampler = keras.saving.serialize_keras_object(self.sampler)
            config["sampler"] = sampler
        return config

    def compile_from_config(self, config):
        """Compiles a loaded task as it was, to go on with its training.

        But for `jit_compile`, which is the backend's to choose.
        """
        try:
            config = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError) as error:
            warnings.warn(
                "The task was compiled with an optimizer, a loss or a metric "
                "that is not registered here, and is loaded as KerasHub "
                "compiles it. Call `compile` before it is trained, or pass "
                f"`custom_objects` to `load_model`. {error}",
                stacklevel=2,
            )
            return
        # Files of 0.1.0 do not say.
        is_optimizer_built = config.pop("is_optimizer_built", True)
        self.compile(**{**config, "jit_compile": "auto"})
        if is_optimizer_built:
            self.optimizer.build(self.trainable_variables)
