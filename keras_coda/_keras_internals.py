"""Everything this library uses of Keras that is not public API.

No other file may import `keras.src` or touch an underscored Keras attribute;
`tests/test_structure.py` enforces it. When a Keras release breaks something,
this is the page to mend.
"""

from keras.src.backend import get_keras_mask

__all__ = ["get_keras_mask", "sublayers"]


def sublayers(layer, recursive=False):
    """The layers tracked by `layer`, without `layer` itself.

    Args:
        layer: a `keras.layers.Layer`.
        recursive: bool. Whether to descend into the sublayers. Defaults to
            `False`.

    Returns:
        A list of `keras.layers.Layer`.
    """
    return layer._flatten_layers(include_self=False, recursive=recursive)
