"""Teaches tf2onnx the operation that TensorFlow computes GELU with."""

import functools

import numpy as np


@functools.cache
def register():
    """Lets tf2onnx 1.17 translate `Erfc(x)`, as `1 - Erf(x)`."""
    from tf2onnx.handler import tf_op
    from tf2onnx.utils import make_name

    @tf_op("Erfc")
    class Erfc:
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
