"""What an artefact takes and gives: names, shapes and dtypes."""

import keras

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.around import as_functional
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_positive_integer


def named_model(model, outputs=None):
    """The graph of a model, from a dict of inputs to a dict of outputs.

    It shares the layers of `model`, which is left as it is.

    Args:
        model: a functional or sequential `keras.Model`.
        outputs: optional name, or list of names, of the outputs to keep.

    Returns:
        A `keras.Model` with the inputs that the outputs depend on.
    """
    model = as_functional("model", model)
    all_outputs = model.output
    if not isinstance(all_outputs, dict):
        all_outputs = dict(zip(model.output_names, model.outputs))
        if len(all_outputs) < len(model.outputs):
            raise ValueError(
                "The outputs of `model` must have different names. Make a "
                "`keras.Model` with a dict of outputs. "
                f"Received: model.output_names={model.output_names}"
            )
    if outputs is None:
        outputs = list(all_outputs)
    elif isinstance(outputs, str):
        outputs = [outputs]
    for name in outputs:
        validate_choice("outputs", name, all_outputs)
    kept = {name: all_outputs[name] for name in outputs}
    needed = {
        id(source)
        for output in kept.values()
        for source in keras.utils.get_source_inputs(output)
    }
    inputs = {
        tensor.name: tensor for tensor in model.inputs if id(tensor) in needed
    }
    return keras.Model(inputs, kept, name=model.name)


def with_weights_as_inputs(model):
    """A model that computes the same with weights that it is given.

    Args:
        model: what `named_model` returned.

    Returns:
        A `keras.Model` with further inputs, and a dict from their names to the
        variables of `model`.
    """
    weights = {
        f"weight_{number}": variable
        for number, variable in enumerate(model.variables)
    }

    class Stateless(keras.layers.Layer):
        def call(self, inputs):
            values = {id(weights[name]): inputs[name] for name in weights}
            outputs, _ = model.stateless_call(
                [values[id(x)] for x in model.trainable_variables],
                [values[id(x)] for x in model.non_trainable_variables],
                {name: inputs[name] for name in model.input},
                training=False,
            )
            return outputs

    inputs = dict(model.input)
    for name, weight in weights.items():
        inputs[name] = keras.Input(
            batch_shape=weight.shape, dtype=weight.dtype, name=name
        )
    return keras.Model(inputs, Stateless()(inputs)), weights


def input_signature(model, sequence_length=None, batch_size=None):
    """The `keras.InputSpec` of each input of a `named_model`.

    Args:
        model: what `named_model` returned.
        sequence_length: optional int for all inputs of unknown length, or a
            pair, for the inputs of the encoder and of the decoder. Defaults to
            `None`, any length.
        batch_size: optional int. Defaults to `None`, any batch size.

    Returns:
        A dict from the names of the inputs.
    """
    lengths = sequence_length
    if not isinstance(lengths, (list, tuple)):
        lengths = (sequence_length, sequence_length)
    if len(lengths) != 2:
        raise ValueError(
            "`sequence_length` must be an integer, or a pair for the encoder "
            f"and the decoder. Received: sequence_length={sequence_length!r}"
        )
    if sequence_length is not None:
        for length in lengths:
            validate_positive_integer("sequence_length", length)
    if batch_size is not None:
        validate_positive_integer("batch_size", batch_size)

    specs = {}
    for name, tensor in model.input.items():
        # KerasHub's name for what a decoder takes.
        length = lengths[name.startswith("decoder_")]
        dims = [length if dim is None else dim for dim in tensor.shape[1:]]
        specs[name] = keras.InputSpec(
            shape=(batch_size, *dims), dtype=tensor.dtype, name=name
        )
    return specs


def has_dynamic_length(specs):
    """Whether a dimension besides the batch is left open."""
    return any(None in spec.shape[1:] for spec in specs.values())


def quantizes_inputs(model):
    """Whether layers of a model round what they take to 8 bits."""
    return any(
        getattr(layer, "inputs_quantizer", None) is not None
        for layer in sublayers(model, recursive=True)
    )


def half_precision(model):
    """The dtypes of less than 32 bits that layers of a model compute in."""
    dtypes = {layer.compute_dtype for layer in sublayers(model, recursive=True)}
    return sorted(dtypes & {"bfloat16", "float16"})
