"""Everything in the tests that knows which backend runs: jit and gradients."""

import keras
import numpy as np
import pytest

BACKEND = keras.backend.backend()

# What `jit_compile` of `keras.Model.compile` can be tried with. Compiling by
# torch.compile takes minutes on a cold machine.
JIT_COMPILE = [False] if BACKEND == "torch" else [True, False]

# JAX compiles what runs eagerly too, operation by operation, for each shape
# anew. PyTorch compiles nothing.
slow_to_compile = pytest.mark.skipif(
    BACKEND != "torch", reason="compiles for minutes; others run here"
)

same_on_every_backend = pytest.mark.skipif(
    BACKEND != "torch",
    reason="the same on every backend, and PyTorch compiles nothing",
)


def to_numpy(tensor):
    """A tensor as a NumPy array; bfloat16 as float32."""
    tensor = keras.ops.convert_to_tensor(tensor)
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return keras.ops.convert_to_numpy(tensor)


def jit(function):
    """The function of tensors, compiled; plain eager code on torch."""
    if BACKEND == "jax":
        import jax

        # A function of its own: `jax.jit` keeps what it compiled by function.
        return jax.jit(lambda *args: function(*args))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    return lambda *args: function(*map(keras.ops.convert_to_tensor, args))


def gradient(function, inputs, direction):
    """The gradient in `inputs` of `sum(function(inputs) * direction)`.

    `inputs` and `direction` are NumPy arrays, and so is the result.
    """

    def loss(x):
        weighted = keras.ops.multiply(function(x), direction)
        return keras.ops.sum(weighted)

    inputs = np.asarray(inputs, "float32")
    direction = np.asarray(direction, "float32")
    if BACKEND == "jax":
        import jax

        return np.asarray(jax.jit(jax.grad(loss))(inputs))
    if BACKEND == "tensorflow":
        import tensorflow as tf

        inputs = tf.constant(inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = loss(inputs)
        return tape.gradient(outputs, inputs).numpy()
    import torch

    inputs = torch.tensor(inputs, requires_grad=True)
    loss(inputs).backward()
    return inputs.grad.numpy()


def variable_gradients(layer, function, *args):
    """Gradients of `function(layer(*args))` in the trainable weights.

    Returns a dict from the paths of the weights to NumPy arrays, with `None`
    for a weight that the outputs do not depend on.
    """
    weights = layer.trainable_variables
    if BACKEND == "jax":
        import jax

        def loss(values):
            outputs, _ = layer.stateless_call(
                values, [w.value for w in layer.non_trainable_variables], *args
            )
            return function(outputs)

        gradients = jax.jit(jax.grad(loss))([w.value for w in weights])
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            outputs = function(layer(*args))
        gradients = tape.gradient(outputs, [w.value for w in weights])
    else:
        layer.zero_grad()
        function(layer(*args)).backward()
        gradients = [w.value.grad for w in weights]
    return {
        weight.path: None if value is None else to_numpy(value)
        for weight, value in zip(weights, gradients)
    }
