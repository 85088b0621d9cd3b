import numpy as np

from keras_coda.validation import validate_positive_integer


class RandomProjectionQuantizer:
    """Numbers vectors by the nearest of random code vectors.

    The targets of BEST-RQ, pretraining for speech: a vector is projected by a
    random matrix, and its code is the number of the code vector in whose
    direction the projection points most closely. That is the nearest where
    both are divided by their lengths. Nothing in it is trained.

    Vectors should have about mean 0 and deviation 1 in each feature, or few
    codes are used.

    Plain NumPy, for a data pipeline.

    Args:
        input_dim: int. Length of the vectors.
        codebook_size: int. Number of codes. Defaults to `8192`, the paper's.
        code_dim: int. Length of the code vectors. Defaults to `16`, the
            paper's.
        seed: optional int, or a `numpy.random.Generator`.

    Call arguments:
        vectors: array of shape `(..., input_dim)`.

    Returns:
        Array of int32 of shape `(...)`, codes from 0 to `codebook_size - 1`.

    Raises:
        ValueError: if an argument is no positive integer, or if the vectors
            are of another length.

    Example:

    >>> quantizer = keras_coda.training.RandomProjectionQuantizer(80, seed=0)
    >>> frames = np.random.default_rng(0).normal(size=(2, 50, 80))
    >>> codes = quantizer(frames)
    >>> codes.shape
    (2, 50)
    >>> np.array_equal(quantizer(3 * frames), codes)
    True

    Reference:
        [Chiu et al., 2022](https://arxiv.org/abs/2202.01855), equation 1.
    """

    def __init__(self, input_dim, codebook_size=8192, code_dim=16, seed=None):
        validate_positive_integer("input_dim", input_dim)
        validate_positive_integer("codebook_size", codebook_size)
        validate_positive_integer("code_dim", code_dim)
        generator = np.random.default_rng(seed)
        # Glorot and Bengio's, as in the paper.
        limit = np.sqrt(6 / (input_dim + code_dim))
        projection = generator.uniform(-limit, limit, (input_dim, code_dim))
        codebook = generator.normal(size=(codebook_size, code_dim))
        codebook /= np.linalg.norm(codebook, axis=-1, keepdims=True)
        self.projection = projection.astype("float32")
        self.codebook = codebook.astype("float32")

    def __call__(self, vectors):
        vectors = np.asarray(vectors, "float32")
        input_dim = len(self.projection)
        if vectors.shape[-1:] != (input_dim,):
            raise ValueError(
                f"`vectors` must be of shape (..., {input_dim}), for "
                f"`input_dim={input_dim}`. Received: {vectors.shape=}"
            )
        # The length of the projection does not change which code is nearest.
        cosines = vectors @ self.projection @ self.codebook.T
        return cosines.argmax(axis=-1).astype("int32")
