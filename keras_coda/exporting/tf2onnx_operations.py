"""What tf2onnx lacks: some operations, and a folding of constants."""

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


def fold_constants(graph):
    """Computes what depends on constants alone, but what would be larger.

    So the kernels of `ops.einsum` are reshaped in the file, where ONNX
    Runtime's quantizer finds them.

    Args:
        graph: an `onnx.GraphProto`, which is changed.
    """
    from onnx import numpy_helper
    from onnx.reference import ReferenceEvaluator

    constants = {
        value.name: numpy_helper.to_array(value) for value in graph.initializer
    }
    folded = {}
    for node in list(graph.node):
        if any(name not in constants for name in node.input):
            continue
        inputs = {name: constants[name] for name in node.input}
        values = ReferenceEvaluator(node).run(None, inputs)
        size = sum(value.nbytes for value in values)
        if size <= max(sum(x.nbytes for x in inputs.values()), 1024):
            graph.node.remove(node)
            results = dict(zip(node.output, values))
            folded |= results
            constants |= results
    used = {name for node in graph.node for name in node.input}
    used |= {output.name for output in graph.output}
    for value in list(graph.initializer):
        if value.name not in used:
            graph.initializer.remove(value)
    for name in used & folded.keys():
        graph.initializer.append(numpy_helper.from_array(folded[name], name))
