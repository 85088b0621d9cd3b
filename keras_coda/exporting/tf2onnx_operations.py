"""What tf2onnx lacks: some operations, and tidiness with constants."""

import functools

import numpy as np

# Of ONNX; the first in which rows can be added to.
OPSET_VERSION = 16


@functools.cache
def register():
    """Lets tf2onnx 1.17 translate GELU and `keras_coda.ops.add_rows`."""
    from onnx import TensorProto
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name

    @tf_op("Erfc")
    class Erfc:
        """`Erfc(x)` is `1 - Erf(x)`."""

        @classmethod
        def version_9(cls, ctx, node, **kwargs):
            dtype = ctx.get_dtype(node.output[0])
            shape = ctx.get_shape(node.output[0])
            outputs = node.output
            ctx.remove_node(node.name)
            erf = ctx.make_node(
                "Erf", node.input, shapes=[shape], dtypes=[dtype]
            )
            one = ctx.make_const(make_name("one"), np.array(1, "float32"))
            ctx.make_node(
                "Sub",
                [one.output[0], erf.output[0]],
                outputs=outputs,
                shapes=[shape],
                dtypes=[dtype],
            )

    @tf_op("TensorScatterAdd", onnx_op="ScatterND")
    class TensorScatterAdd:
        """`ScatterND`, whose indices are int64."""

        @classmethod
        def version_16(cls, ctx, node, **kwargs):
            node.set_attr("reduction", "add")
            ctx.insert_new_node_on_input(
                node, "Cast", node.input[1], to=TensorProto.INT64
            )


def fold_shapes(graph):
    """Replaces the shapes of constants, for which tf2onnx keeps copies.

    It asks the kernels of `ops.einsum` for them, which are then twice in the
    file: as they are multiplied and as they came.

    Args:
        graph: an `onnx.GraphProto`, which is changed.
    """
    from onnx import numpy_helper

    constants = {value.name: value for value in graph.initializer}
    shapes = [
        node
        for node in graph.node
        if node.op_type == "Shape"
        and node.input[0] in constants
        and not node.attribute
    ]
    for node in shapes:
        shape = np.array(constants[node.input[0]].dims, "int64")
        graph.initializer.append(numpy_helper.from_array(shape, node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for name in {node.input[0] for node in shapes} - used:
        graph.initializer.remove(constants[name])
