from keras_coda._keras_internals import sublayers


class PartlyFrozen:
    """Mixin of layers and models of which only some sublayers are trained.

    Keras sets `trainable` on every sublayer of a model that becomes trainable,
    and loading a model does so too. This mixin freezes again what is to stay
    frozen, each time.
    """

    def trained_layers(self):
        """The sublayers, at any depth, whose weights are trained."""
        raise NotImplementedError

    @property
    def trainable(self):
        return super().trainable

    @trainable.setter
    def trainable(self, value):
        super(PartlyFrozen, type(self)).trainable.fset(self, value)
        if value:
            self.freeze()

    def freeze(self):
        """Freezes all weights but those of `trained_layers`, and LoRA's."""
        trained = [*self.trained_layers(), *lora_layers(self)]
        _freeze_all_but({id(layer) for layer in trained}, self)


def lora_layers(layer):
    """The sublayers, at any depth, in which LoRA is enabled."""
    return [
        sublayer
        for sublayer in sublayers(layer, recursive=True)
        if getattr(sublayer, "lora_enabled", False)
    ]


def lora_weights(layer):
    """The two trained matrices of a layer in which LoRA is enabled."""
    return [layer.lora_kernel_a, layer.lora_kernel_b]


def _freeze_all_but(trained_ids, layer):
    children = sublayers(layer)
    for child in children:
        descendants = sublayers(child, recursive=True)
        if id(child) in trained_ids:
            child.trainable = True
            if getattr(child, "lora_enabled", False):
                _freeze_own_weights(child, lora_weights(child))
        elif any(id(descendant) in trained_ids for descendant in descendants):
            child.trainable = True
            _freeze_all_but(trained_ids, child)
        else:
            child.trainable = False
    _freeze_own_weights(layer, [w for child in children for w in child.weights])


def _freeze_own_weights(layer, others):
    """Freezes the weights of `layer` that are not among `others`."""
    other_ids = {id(weight) for weight in others}
    for weight in layer.weights:
        if id(weight) not in other_ids:
            weight.trainable = False
