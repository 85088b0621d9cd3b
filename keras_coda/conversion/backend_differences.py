"""Where language models differ between backends: all that asks for them."""

import keras
import numpy as np


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
