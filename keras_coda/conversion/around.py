"""Models that were built around a backbone, and are no KerasHub tasks."""

import keras

from keras_coda.conversion.trained_weights import backbone_of


def with_backbone(model, backbone):
    """The same model around another backbone.

    Args:
        model: a functional `keras.Model`, such as a KerasHub task, that calls
            one backbone.
        backbone: with the inputs and outputs of that backbone.

    Returns:
        A functional model that calls `backbone`. Its other layers are copies.
    """
    replaced = backbone_of(model)
    # From the id of each layer to the one in its place.
    layers = {id(replaced): backbone}

    def replace(layer):
        if id(layer) not in layers:
            layers[id(layer)] = type(layer).from_config(layer.get_config())
        return layers[id(layer)]

    # Keras would call the constructor of a KerasHub task.
    plain = keras.Model(model.input, model.output, name=model.name)
    copy = keras.models.clone_model(plain, clone_function=replace)
    for layer in plain.layers:
        if layer is not replaced and id(layer) in layers:
            layers[id(layer)].set_weights(layer.get_weights())
    return copy
