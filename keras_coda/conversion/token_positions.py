from keras import ops


def token_positions(token_ids):
    """int32 positions, of the shape of `token_ids`.

    Unlike `ops.arange` it takes a symbolic input of unknown length, as
    `Family.pinned` gets it.
    """
    ones = ops.ones_like(token_ids, dtype="int32")
    return ops.cumsum(ones, axis=-1) - 1
