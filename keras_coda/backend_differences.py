"""Where backends differ, but in exporting: all that asks for the backend."""

import keras
import numpy as np


def shards_batches():
    """Whether `keras.distribution` splits a batch, with the compiler's help.

    A compiler keeps in its device what does not mix the batch with other axes.
    """
    return keras.config.backend() == "jax"


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
