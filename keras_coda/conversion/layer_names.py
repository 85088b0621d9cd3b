"""The names that Keras makes up, which it numbers within a process."""

import collections
import re


def base_names(layers):
    """Made-up names without their numbers, by the path of the layer."""
    # Keras never makes up a name twice: a "dense_1" in each block is given.
    counts = collections.Counter(map(_name_and_depth, layers))
    return {
        layer.path: _base(layer)
        for layer in layers
        if is_made_up(layer) and counts[_name_and_depth(layer)] == 1
    }


def _name_and_depth(layer):
    # A path is `None` before the layer is built.
    return layer.name, (layer.path or "").count("/")


def is_made_up(layer):
    """Whether a name looks like one that Keras made up."""
    return _base(layer).replace("_", "") == type(layer).__name__.lower()


def _base(layer):
    return re.sub(r"_\d+$", "", layer.name)
