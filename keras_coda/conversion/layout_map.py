"""How the frozen weights of a model are split over devices."""

import keras

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.parallel_adapter import FloatDense


def layout_map(model, device_mesh, model_parallel_dim_name="model"):
    """Splits the frozen kernels and embeddings of a model over devices.

    For `keras.distribution.ModelParallel`, which Keras has on JAX, and for
    every family. The projections of queries, keys and values are split by
    heads and the feedforward network by its intermediate dimension, so that a
    block communicates twice, after attention and after the feedforward network.
    Embeddings are split by the vocabulary. What is small is on every device:
    adapters, routers, shortcuts, normalisations, biases of outputs. So is what
    the devices do not divide.

    The layouts are for the paths of the weights: those of another model of the
    same architecture, made in the distribution's scope, are the same.

    Args:
        model: a KerasHub backbone or task, converted or not.
        device_mesh: a `keras.distribution.DeviceMesh`.
        model_parallel_dim_name: the axis of the mesh to split over. Defaults to
            `"model"`.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        TypeError: if `device_mesh` is no device mesh.
        ValueError: if the mesh has no such axis.

    Example:

    >>> mesh = keras.distribution.DeviceMesh(
    ...     (1, 2), ("batch", "model"), ["cpu:0", "cpu:1"]
    ... )
    >>> dense = keras_hub.models.BertBackbone(
    ...     vocabulary_size=100,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=16,
    ...     intermediate_dim=64,
    ... )
    >>> layouts = keras_coda.layout_map(dense, mesh)
    >>> layouts["transformer_layer_0/self_attention_layer/query/kernel"].axes
    (None, 'model', None)

    Reference:
        [Shoeybi et al., 2019](https://arxiv.org/abs/1909.08053), section 3.
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise TypeError(
            "`device_mesh` must be a `keras.distribution.DeviceMesh`. "
            f"Received: device_mesh={device_mesh!r}"
        )
    if model_parallel_dim_name not in device_mesh.axis_names:
        raise ValueError(
            "`model_parallel_dim_name` must be an axis of the mesh, one of "
            f"{device_mesh.axis_names}. Received: "
            f"model_parallel_dim_name={model_parallel_dim_name!r}"
        )
    axis = device_mesh.axis_names.index(model_parallel_dim_name)
    num_parts = device_mesh.shape[axis]
    layouts = keras.distribution.LayoutMap(device_mesh)
    for layer in sublayers(backbone_of(model), recursive=True):
        for weight, split in _splits(layer):
            if weight.shape[split] % num_parts == 0:
                axes = [None] * len(weight.shape)
                axes[split] = model_parallel_dim_name
                layouts[weight.path] = tuple(axes)
    return layouts


def _splits(layer):
    """Yields tuples of a weight and the axis to split it along."""
    if isinstance(layer, FloatDense):
        # Of an adapter: it is small.
        return
    # By name: LoRA and quantisation make other values of `layer.kernel`.
    weights = {weight.name: weight for weight in layer.weights}
    if isinstance(layer, keras.layers.Embedding):
        yield weights["embeddings"], 0
        if "reverse_embeddings" in weights:
            yield weights["reverse_embeddings"], 1
    elif isinstance(layer, (keras.layers.Dense, keras.layers.EinsumDense)):
        kernel = weights["kernel"]
        summed, kept = _kernel_axes(layer)
        if _returns_to_residual(layer.name, kernel.shape, summed):
            yield kernel, summed[0]
            return
        yield kernel, kept[0]
        if "bias" in weights:
            # The bias of heads is `(num_heads, head_dim)`.
            yield weights["bias"], len(weights["bias"].shape) - len(kept)


def _kernel_axes(layer):
    """The axes of a kernel that are summed over, and those that are not."""
    if isinstance(layer, keras.layers.Dense):
        return [0], [1]
    operands, outputs = layer.equation.split("->")
    kernel = operands.split(",")[1]
    summed = [i for i, axis in enumerate(kernel) if axis not in outputs]
    kept = [i for i, axis in enumerate(kernel) if axis in outputs]
    return summed, kept


def _returns_to_residual(name, shape, summed):
    """Whether a kernel's inputs are what the layers before it have split.

    Attention sums over heads and their width; a feedforward network over what
    is wider than the hidden dimension.
    """
    if len(summed) > 1 or "output" in name:
        return True
    return len(shape) == 2 and shape[0] > shape[1]
