"""Teaches tf2onnx the TensorFlow operations that it does not know."""

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
