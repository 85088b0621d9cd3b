"""Models that were built around a backbone, and are no KerasHub tasks."""

import keras

from keras_coda.conversion.trained_weights import backbone_of


def as_functional(name, model, way_round=""):
    """A model as a graph of layers, which most are.

    Args:
        name: str, what the caller calls the model.
        model: a model with a backbone.
        way_round: str, what to do instead. A sentence with a space behind it.

    Returns:
        `model`; or, of a `keras.Sequential`, a functional model of its layers.

    Raises:
        TypeError: if it is no graph.
    """
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    # Functional models alone have them.
    if not hasattr(model, "operations"):
        raise TypeError(
            f"`{name}` must be a functional model, or a sequential one with an "
            "`Input`, if it is neither a KerasHub backbone nor a task. "
            f"{way_round}Received: {name}={model!r} of type "
            f"{type(model).__name__}"
        )
    return model


def with_backbone(model, backbone):
    """The same model around another backbone.

    Args:
        model: a functional `keras.Model`, or a KerasHub task, that calls one
            backbone.
        backbone: with the inputs and outputs of that backbone.

    Returns:
        A functional model that calls `backbone`. Its other weights are copies.
    """
    replaced = backbone_of(model)
    # From the id of each layer to the one in its place.
    layers = {id(replaced): backbone}

    def replace(layer):
        if id(layer) not in layers:
            layers[id(layer)] = _copy(layer)
        return layers[id(layer)]

    # Keras would call the constructor of a KerasHub task.
    plain = keras.Model(model.input, model.output, name=model.name)
    clone = keras.models.clone_model(plain, clone_function=replace)
    for layer in plain.layers:
        copy = layers.get(id(layer), layer)
        if copy is not layer and copy is not backbone:
            copy.set_weights(layer.get_weights())
    return clone


def _copy(layer):
    # The graph may have operations that are no layers.
    if not getattr(layer, "weights", ()):
        return layer
    return type(layer).from_config(layer.get_config())
