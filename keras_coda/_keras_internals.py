"""Everything this library uses of Keras that is not public API.

No other file may import `keras.src` or touch an underscored Keras attribute;
`tests/test_structure.py` enforces it. When a Keras release breaks something,
this is the page to mend.
"""

import functools

import keras
from keras.src.backend import get_keras_mask

__all__ = [
    "calls_of",
    "forget_compiled_functions",
    "get_keras_mask",
    "own_dtype_policy",
    "sublayers",
    "track_variables_anew",
]


def sublayers(layer, recursive=False):
    """The layers tracked by `layer`, without `layer` itself.

    Args:
        layer: a `keras.layers.Layer`.
        recursive: bool. Whether to descend into the sublayers. Defaults to
            `False`.

    Returns:
        A list of `keras.layers.Layer`, each once, in the order in which their
        parents hold them.
    """
    children = layer._flatten_layers(include_self=False, recursive=False)
    if not recursive:
        return children
    # Keras's own recursion reverses the children of what is nested.
    found = {}
    for child in children:
        for descendant in [child, *sublayers(child, recursive=True)]:
            found.setdefault(id(descendant), descendant)
    return list(found.values())


def calls_of(model, layer):
    """What a functional model calls one of its layers with.

    Args:
        model: a `keras.Model`.
        layer: one of its layers.

    Returns:
        A list with the symbolic first argument of each call; empty if the model
        is not functional.
    """
    arguments = [
        node.arguments
        for nodes in getattr(model, "_nodes_by_depth", {}).values()
        for node in nodes
        if node.operation is layer
    ]
    return [[*own.args, *own.kwargs.values()][0] for own in arguments]


def forget_compiled_functions(model):
    """Makes a model trace its functions anew; also in the middle of `fit`.

    Args:
        model: a `keras.Model`, compiled or not.
    """
    for kind in ("train", "test", "predict"):
        if getattr(model, f"{kind}_function", None) is None:
            continue
        # `jax.jit` keeps traces by function, and `model.train_step` is equal
        # to itself each time: hand it a function that is not.
        step = getattr(type(model), f"{kind}_step")
        object.__setattr__(
            model, f"{kind}_step", functools.partial(step, model)
        )
        try:
            getattr(model, f"make_{kind}_function")(force=True)
        finally:
            object.__delattr__(model, f"{kind}_step")
    # KerasHub's generative tasks compile it on the next `generate`.
    if getattr(model, "generate_function", None) is not None:
        model.generate_function = None


def track_variables_anew(layer):
    """Makes PyTorch forget the variables that layers inside no longer have.

    Each layer tells PyTorch of the variables of all layers in it, once, and
    else those that were quantized would be kept in float, too.

    Args:
        layer: a `keras.layers.Layer`.
    """
    for part in [layer, *sublayers(layer, recursive=True)]:
        if hasattr(part, "_track_variables"):
            part._track_variables()


def own_dtype_policy(layer):
    """Gives a layer the policy that it has by a map, which others share.

    Keras cannot quantize it else.

    Args:
        layer: a `keras.layers.Layer`.
    """
    policy = layer.dtype_policy
    if isinstance(policy, keras.dtype_policies.DTypePolicyMap):
        layer._dtype_policy = policy[layer.path]
