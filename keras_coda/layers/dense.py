"""Dense layers in as few passes over their outputs as the backend allows."""

import functools

import keras
from keras import ops

from keras_coda.backend_differences import add_product
from keras_coda.backend_differences import adds_in_place
from keras_coda.backend_differences import fuses_sums
from keras_coda.backend_differences import multiply_and_add_bias


def call_dense(layer, inputs, **arguments):
    """What a dense layer returns, without Keras's call where that is slow.

    On PyTorch and TensorFlow nothing fuses Keras's addition of the bias, which
    is a pass over the outputs, and on PyTorch its call of a layer takes as long
    as the product of a few rows.

    Args:
        layer: any layer. A `keras.layers.Dense`, or a
            `keras.layers.EinsumDense` that contracts the inputs' last axes,
            with a bias, is computed here.
        inputs: tensor that the layer takes.
        **arguments: further ones of the layer; a dense layer ignores them.

    Returns:
        Tensor, `layer(inputs)` but for rounding.
    """
    num_contracted = 0 if fuses_sums() else _num_contracted(layer)
    if num_contracted == 0:
        return layer(inputs, **arguments)
    inputs, kernel, bias = (
        ops.cast(tensor, layer.compute_dtype)
        for tensor in (inputs, layer.kernel, layer.bias)
    )
    outputs = multiply_and_add_bias(inputs, kernel, bias, num_contracted)
    return outputs if layer.activation is None else layer.activation(outputs)


def add_dense(inputs, layer, rows, scale=1.0):
    """`inputs + scale * layer(rows)`, a tensor that nothing else holds.

    Args:
        inputs: tensor of shape `(..., units)`.
        layer: a `keras.layers.Dense` without activation.
        rows: tensor that the layer takes.
        scale: float.
    """
    if not adds_in_place() or inputs.dtype != rows.dtype:
        outputs = call_dense(layer, rows)
        if scale != 1:
            outputs = outputs * ops.cast(scale, outputs.dtype)
        return inputs + outputs
    kernel, bias = (
        ops.cast(weight, rows.dtype) for weight in (layer.kernel, layer.bias)
    )
    outputs = add_product(inputs, rows, kernel, scale=scale)
    outputs += bias if scale == 1 else scale * bias
    return outputs


def _num_contracted(layer):
    """How many axes a layer contracts, or 0 where it does anything else."""
    is_dense = type(layer).call is keras.layers.Dense.call
    if not (is_dense or type(layer).call is keras.layers.EinsumDense.call):
        return 0
    # A quantized layer's kernel is not what it multiplies with.
    if layer.quantization_mode is not None or layer.bias is None:
        return 0
    if is_dense:
        return 1
    num_contracted = _num_contracted_by(layer.equation)
    units = layer.kernel.shape[num_contracted:]
    return num_contracted if layer.bias.shape == units else 0


@functools.cache
def _num_contracted_by(equation):
    """The 2 of `"abcd,cde->abe"`, or 0."""
    operands, outputs = equation.replace(" ", "").split("->")
    inputs, kernel = operands.split(",")
    for number in range(1, len(kernel)):
        contracted, units = kernel[:number], kernel[number:]
        if inputs.endswith(contracted):
            if outputs == inputs[:-number] + units:
                return number
    return 0
