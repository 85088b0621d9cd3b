"""Where backends differ, but in exporting: all that asks for the backend."""

import math

import keras
import numpy as np


def shards_batches():
    """Whether `keras.distribution` splits a batch, with the compiler's help.

    A compiler keeps in its device what does not mix the batch with other axes.
    """
    return keras.config.backend() == "jax"


def fuses_sums():
    """Whether a sum is fused with what makes its terms.

    Where it is not, each sum is a pass over memory. On TensorFlow it is with
    `jit_compile=True` alone.
    """
    return keras.config.backend() == "jax"


def adds_in_place():
    """Whether a tensor can be changed."""
    return keras.config.backend() == "torch"


def fuses_reductions():
    """Whether a sum over products makes no tensor of the products."""
    return keras.config.backend() == "jax"


def lacks_gradients():
    """Whether what a loss does not depend on has no gradient, in place of 0."""
    return keras.config.backend() != "jax"


def fuses_attention(dtype):
    """Whether `keras.ops.dot_product_attention` is more than its parts.

    Args:
        dtype: of the tensors. JAX has none for float16 on a CPU.
    """
    if _is_jax_on_cpu():
        return keras.backend.standardize_dtype(dtype) != "float16"
    return keras.config.backend() != "tensorflow"


def fuses_over_copies():
    """Whether fused attention is worth a copy of shared keys for each head.

    For a few queries, XLA on a CPU takes most of its time to make them.
    """
    return keras.config.backend() != "tensorflow" and not _is_jax_on_cpu()


def _is_jax_on_cpu():
    if keras.config.backend() != "jax":
        return False
    import jax

    return jax.default_backend() == "cpu"


def multiply_and_add_bias(inputs, kernel, bias, num_contracted):
    """`inputs @ kernel + bias` in one pass, on PyTorch and TensorFlow.

    Args:
        inputs: tensor whose last `num_contracted` axes are the kernel's first.
        kernel: tensor of any number of axes.
        bias: tensor of the other axes of the kernel.
        num_contracted: int >= 1.
    """
    if keras.config.backend() == "torch":
        return add_product(bias, inputs, kernel, num_contracted)
    import tensorflow as tf

    units = kernel.shape[num_contracted:]
    shape = (*keras.ops.shape(inputs)[:-num_contracted], *units)
    width = math.prod(units)
    kernel = tf.reshape(kernel, (-1, width))
    # Of matrices alone, TensorFlow fuses it: Keras multiplies tensors, whose
    # outputs are reshaped before the sum.
    outputs = tf.nn.bias_add(
        tf.matmul(tf.reshape(inputs, (-1, kernel.shape[0])), kernel),
        tf.reshape(bias, (width,)),
    )
    return tf.reshape(outputs, shape)


def add_product(terms, inputs, kernel, num_contracted=1, scale=1.0):
    """`terms + scale * inputs @ kernel` in one pass, on PyTorch.

    Args:
        terms: tensor of the shape of the outputs, or of the kernel's axes in
            it.
        inputs: tensor whose last `num_contracted` axes are the kernel's first.
        kernel: tensor of any number of axes.
        num_contracted: int >= 1.
        scale: float.
    """
    import torch

    units = kernel.shape[num_contracted:]
    rows = inputs.flatten(-num_contracted).flatten(0, -2)
    kernel = kernel.reshape(rows.shape[-1], -1)
    terms = terms.reshape(-1, kernel.shape[1])
    outputs = torch.addmm(terms, rows, kernel, alpha=scale)
    return outputs.reshape(*inputs.shape[:-num_contracted], *units)


def add_rows_in_place(inputs, rows, indices):
    """Adds rows to those of a matrix, on PyTorch, which holds the sum then."""
    return inputs.index_add_(0, indices, rows)


def compiles_whole_models():
    """Whether `jit_compile=True` of Keras compiles a model as one function.

    PyTorch compiles the layers one by one, in minutes, and most of them not.
    """
    return keras.config.backend() != "torch"


def compiled_forward(model):
    """A function that infers, compiled by PyTorch for each shape of inputs.

    Any batch size is one shape; PyTorch itself sets a size of 1 apart.
    """
    import torch

    functions = {}

    def forward(inputs):
        specs = keras.tree.map_structure(
            lambda tensor: keras.InputSpec(
                shape=(None, *tensor.shape[1:]),
                dtype=keras.backend.standardize_dtype(tensor.dtype),
            ),
            inputs,
        )
        key = str(keras.tree.flatten(specs))
        if key not in functions:
            program = program_of_torch(model, specs)
            functions[key] = torch.compile(program.module(), dynamic=True)
        inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
        with torch.no_grad():
            return functions[key](inputs)

    return forward


def program_of_torch(model, specs):
    """What `torch.export` makes of a model's inference.

    Args:
        model: a `keras.Model`.
        specs: a `keras.InputSpec` for each input, in the model's structure.
    """
    import torch

    # Keras 3.15 exports the model as a module, whose parameters PyTorch then
    # writes twice: as such, unused, and as the constants of the graph.
    class Forward(torch.nn.Module):
        def forward(self, inputs):
            return model(inputs, training=False)

    def sample(spec):
        # A batch of 1 would become the one batch size.
        shape = (spec.shape[0] or 2, *spec.shape[1:])
        return keras.ops.ones(shape, spec.dtype)

    batch = torch.export.Dim("batch_size", min=1)

    def dynamic_axes(spec):
        return {0: batch if spec.shape[0] is None else None}

    return torch.export.export(
        Forward(),
        (keras.tree.map_structure(sample, specs),),
        dynamic_shapes=[keras.tree.map_structure(dynamic_axes, specs)],
        strict=False,
    )


def has_windows():
    """Whether KerasHub's Qwen models attend within their windows.

    It forgets them where it calls fused attention.
    """
    return keras.config.backend() == "tensorflow"


def compiles_generation():
    """Whether `generate` is compiled anew for each length."""
    return keras.config.backend() != "torch"


def join(first, second):
    """Joins what preprocessors return along the last axis.

    Arrays, or tensors of TensorFlow within `tf.data`, on every backend.
    """
    if hasattr(first, "numpy") or not hasattr(first, "graph"):
        return np.concatenate([first, second], axis=-1)
    import tensorflow as tf

    return tf.concat([first, second], axis=-1)
