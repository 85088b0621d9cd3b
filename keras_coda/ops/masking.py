"""The one way in which scores are masked before a softmax or a sort."""

import keras
from keras import ops

# Half of the lowest number of each dtype: a bias can be added without
# overflow, and a row in which all is masked stays finite.
_LOWEST = {
    "float16": -3e4,
    "bfloat16": -1.5e38,
    "float32": -1.5e38,
    "float64": -1.5e38,
}


def mask_scores(scores, mask):
    """Scores with the lowest number where `mask` is false.

    Args:
        scores: float tensor.
        mask: bool tensor that broadcasts with `scores`, or `None`, which masks
            nothing.

    Returns:
        Tensor of the dtype of `scores`.
    """
    if mask is None:
        return scores
    dtype = keras.backend.standardize_dtype(scores.dtype)
    lowest = ops.convert_to_tensor(_LOWEST[dtype], dtype)
    return ops.where(mask, scores, lowest)
