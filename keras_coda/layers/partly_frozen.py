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
        """Freezes all weights but those of `trained_layers`."""
        _freeze_all_but({id(layer) for layer in self.trained_layers()}, self)


def _freeze_all_but(trained_ids, layer):
    children = sublayers(layer)
    for child in children:
        descendants = sublayers(child, recursive=True)
        if id(child) in trained_ids:
            child.trainable = True
        elif any(id(descendant) in trained_ids for descendant in descendants):
            child.trainable = True
            _freeze_all_but(trained_ids, child)
        else:
            child.trainable = False
    child_weight_ids = {id(w) for child in children for w in child.weights}
    for weight in layer.weights:
        if id(weight) not in child_weight_ids:
            weight.trainable = False
