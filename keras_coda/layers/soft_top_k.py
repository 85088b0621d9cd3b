import keras
from keras import ops

from keras_coda.ops.routing import routed_length
from keras_coda.ops.soft_top_k import soft_top_k
from keras_coda.ops.soft_top_k import validate_coordinate_descent
from keras_coda.ops.soft_top_k import validate_solver
from keras_coda.validation import validate_positive_integer
from keras_coda.validation import validate_reduction_factor


@keras.saving.register_keras_serializable(package="keras_coda")
class SoftTopK(keras.layers.Layer):
    """Selects the k largest scores of each row, softly.

    The layer form of `keras_coda.ops.soft_top_k`. Give either `k`, or
    `reduction_factor` for a k that follows the length, `k = ceil(n / r)`.

    Scores that the Keras mask, or `mask`, marks as padding get weight 0 and
    take no part of the budget.

    Args:
        k: optional int >= 1. The number of scores to select.
        reduction_factor: optional float >= 1. The ratio of scores to selected
            scores.
        epsilon: float > 0. Weight of the entropy, in units of the scores.
            Defaults to `0.03`.
        solver: `"exact"` or `"coordinate_descent"`. Defaults to `"exact"`.
        num_iterations: int. Iterations of coordinate descent. Defaults to
            `20`.
        epsilon_init: float. The first iteration's epsilon. Defaults to `4.0`.
        epsilon_decay: float in (0, 1). Factor on epsilon per iteration.
            Defaults to `0.7`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        scores: float tensor of shape `(batch_size, ..., n)`.
        mask: optional bool tensor of the shape of `scores`.

    Returns:
        Tensor of the shape of `scores`, in `[0, 1]`.

    Raises:
        ValueError: if not exactly one of `k` and `reduction_factor` is given,
            or if an argument is out of range.

    Example:

    >>> layer = keras_coda.layers.SoftTopK(reduction_factor=2)
    >>> weights = layer(np.array([[4.0, 1.0, 3.0, 2.0]]))
    >>> print(np.round(keras.ops.convert_to_numpy(weights), 2))
    [[1. 0. 1. 0.]]

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), eq. 12 and 13.
    """

    def __init__(
        self,
        k=None,
        reduction_factor=None,
        epsilon=0.03,
        solver="exact",
        num_iterations=20,
        epsilon_init=4.0,
        epsilon_decay=0.7,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if (k is None) == (reduction_factor is None):
            raise ValueError(
                "Give exactly one of `k` and `reduction_factor`. "
                f"Received: k={k}, reduction_factor={reduction_factor}"
            )
        if k is not None:
            validate_positive_integer("k", k)
        else:
            validate_reduction_factor(reduction_factor)
        validate_solver(solver, epsilon)
        validate_coordinate_descent(num_iterations, epsilon_init, epsilon_decay)
        self.k = k
        self.reduction_factor = reduction_factor
        self.epsilon = epsilon
        self.solver = solver
        self.num_iterations = num_iterations
        self.epsilon_init = epsilon_init
        self.epsilon_decay = epsilon_decay
        self.supports_masking = True

    def call(self, scores, mask=None):
        k = self.k
        if k is None:
            k = routed_length(ops.shape(scores)[-1], self.reduction_factor)
        return soft_top_k(
            scores,
            k,
            epsilon=self.epsilon,
            solver=self.solver,
            mask=mask,
            num_iterations=self.num_iterations,
            epsilon_init=self.epsilon_init,
            epsilon_decay=self.epsilon_decay,
        )

    def compute_output_shape(self, scores_shape):
        return scores_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "k": self.k,
                "reduction_factor": self.reduction_factor,
                "epsilon": self.epsilon,
                "solver": self.solver,
                "num_iterations": self.num_iterations,
                "epsilon_init": self.epsilon_init,
                "epsilon_decay": self.epsilon_decay,
            }
        )
        return config
