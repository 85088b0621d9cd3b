import keras
from keras import ops

from keras_coda.backend_differences import fuses_reductions
from keras_coda.backend_differences import lacks_gradients
from keras_coda.ops.routing import gather_rows
from keras_coda.ops.routing import routed_length
from keras_coda.ops.soft_top_k import SOLVERS
from keras_coda.ops.soft_top_k import best_positions
from keras_coda.ops.soft_top_k import soft_top_k_and_best
from keras_coda.ops.soft_top_k import validate_solver
from keras_coda.validation import plain_number
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_mask_shape
from keras_coda.validation import validate_non_negative_integer
from keras_coda.validation import validate_reduction_factor

ROUTERS = (*SOLVERS, "sigmoid", "first_k")


@keras.saving.register_keras_serializable(package="keras_coda")
class TokenRouter(keras.layers.Layer):
    """Picks the k = ceil(n / reduction_factor) tokens that a block computes.

    Each token's score is a learned linear function of it, always in float32.
    The k tokens with the highest scores are routed, with the weight that
    `router` gives them:

    - `"exact"`, `"coordinate_descent"`: soft top-k of the scores, with that
      solver (see `keras_coda.ops.soft_top_k`).
    - `"sigmoid"`: the sigmoid of each score, an ablation of the paper.
    - `"first_k"`: no scores at all; the first k tokens, with weight 1. This is
      truncation, the ablation that routing has to beat.

    Padding is never routed before a real token and has weight 0. A row with
    fewer than k real tokens routes all of them.

    Tokens that are pinned are always routed, with weight 1. They are part of
    the k.

    Where no token is left out (`reduction_factor=1`, or k = n) the tokens keep
    their order. With `"exact"` and `"first_k"` every weight is then 1, that of
    padding too, as in a dense model.

    Args:
        reduction_factor: float >= 1. Ratio of tokens to routed tokens.
            Defaults to `4`. It may be changed later; models compiled before
            then have to be compiled again
            (`keras_coda.set_reduction_factor` does both).
        router: `"exact"`, `"coordinate_descent"`, `"sigmoid"` or `"first_k"`.
            Defaults to `"exact"`.
        epsilon: float > 0. Weight of the entropy in soft top-k, in units of
            the scores. Defaults to `0.03`.
        num_prefix_tokens: int >= 0. Leading tokens that are pinned, such as
            the class token that a head pools; k is never smaller. Defaults to
            `0`.
        kernel_initializer: initializer of the score projection. Defaults to a
            normal distribution of standard deviation 0.02.
        **kwargs: see `keras.layers.Layer`. `dtype` defaults to `"float32"`
            whatever the global policy, because a score's rounding decides
            which tokens are routed.

    Call arguments:
        inputs: float tensor of shape `(batch_size, n, hidden_dim)`.
        mask: optional bool tensor of shape `(batch_size, n)`, false at
            padding.
        pinned: optional bool tensor of shape `(batch_size, n)`, true at
            further tokens to pin. Of more than k in a row, the first k are
            routed.
        num_routed: optional int tensor of shape `(batch_size,)`, with `pinned`:
            how many tokens of each row are routed, at most k. The others among
            the k have weight 0.

    Returns:
        A tuple `(weights, indices)`: float32 weights in `[0, 1]` and int32
        positions, both of shape `(batch_size, k)`.

    Raises:
        ValueError: if an argument is out of range or unknown, or if the shape
            of `mask` does not fit.

    Example:

    >>> router = keras_coda.layers.TokenRouter(reduction_factor=4)
    >>> weights, indices = router(np.random.normal(size=(2, 12, 32)))
    >>> print(tuple(weights.shape), tuple(indices.shape))
    (2, 3) (2, 3)

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), eq. 9 to 12;
        Table 3 for the ablations.
    """

    # How many tokens are pinned by `pinned`, where that is known; k is never
    # smaller.
    num_pinned = 0

    def __init__(
        self,
        reduction_factor=4,
        router="exact",
        epsilon=0.03,
        num_prefix_tokens=0,
        kernel_initializer=None,
        **kwargs,
    ):
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.reduction_factor = reduction_factor
        self.router = validate_choice("router", router, ROUTERS)
        validate_solver("exact", epsilon)
        self.epsilon = plain_number(epsilon)
        self.num_prefix_tokens = validate_non_negative_integer(
            "num_prefix_tokens", num_prefix_tokens
        )
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=0.02)
        )
        self.supports_masking = True

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens."""
        return self._reduction_factor

    @reduction_factor.setter
    def reduction_factor(self, value):
        self._reduction_factor = validate_reduction_factor(value)

    def build(self, inputs_shape):
        self.kernel = None
        if self.router != "first_k":
            self.kernel = self.add_weight(
                name="kernel",
                shape=(inputs_shape[-1], 1),
                initializer=self.kernel_initializer,
            )

    def call(self, inputs, mask=None, pinned=None, num_routed=None):
        if mask is not None:
            validate_mask_shape("mask", mask, tuple(inputs.shape[:2]))
            mask = ops.cast(mask, "bool")
        length = ops.shape(inputs)[1]
        most = self.routed_length(length)
        scores = self._scores(inputs)
        if pinned is not None:
            validate_mask_shape("pinned", pinned, tuple(inputs.shape[:2]))
            pinned = self.pinned_tokens(inputs, mask, pinned)
        if self.routes_all(length):
            positions = ops.arange(length, dtype="int32")
            return (
                self._route_all(scores, mask, pinned),
                ops.broadcast_to(positions, ops.shape(scores)),
            )
        if pinned is not None:
            first = ops.where(pinned, ops.full_like(scores, 1e30), scores)
            indices = best_positions(first, most, mask)[:, :most]
            if num_routed is None:
                weights = self._weights_beside(pinned, scores, most, mask)
                return gather_rows(weights, indices), indices
            weights = self._weights_beside(pinned, scores, num_routed, mask)
            # The best come first.
            least = ops.sum(ops.cast(pinned, "int32"), axis=-1)
            within = ops.arange(most) < ops.expand_dims(
                ops.maximum(num_routed, least), -1
            )
            weights = gather_rows(weights, indices)
            return weights * ops.cast(within, weights.dtype), indices

        num_prefix = _minimum(self.num_prefix_tokens, length)
        num_chosen = most - num_prefix
        chosen_scores = scores[:, num_prefix:]
        chosen_mask = None if mask is None else mask[:, num_prefix:]
        weights, best = self._weights_and_best(
            chosen_scores, num_chosen, chosen_mask
        )
        indices = best[:, :num_chosen]
        weights = gather_rows(weights, indices)
        if self.num_prefix_tokens == 0:
            return weights, indices

        prefix_scores = scores[:, :num_prefix]
        prefix_weights = _constant(_ones(prefix_scores, mask), prefix_scores)
        prefix_indices = ops.broadcast_to(
            ops.arange(num_prefix, dtype="int32"), ops.shape(prefix_weights)
        )
        return (
            ops.concatenate([prefix_weights, weights], axis=1),
            ops.concatenate([prefix_indices, indices + num_prefix], axis=1),
        )

    def ones(self, inputs):
        """A weight of 1 for each token, in which the router has no gradient."""
        scores = self._scores(inputs)
        return _constant(ops.ones_like(scores), scores)

    def routes_all(self, length):
        """Whether it is known that no token of `length` is left out."""
        num_routed = self.routed_length(length)
        return num_routed is length or _statically_equal(num_routed, length)

    def pinned_tokens(self, inputs, mask=None, pinned=None):
        """Which tokens are always routed, the prefix and what is pinned.

        Returns:
            Bool tensor of shape `(batch_size, n)`, false at padding.
        """
        batch_size, length = ops.shape(inputs)[:2]
        positions = ops.arange(length, dtype="int32")
        all_pinned = ops.broadcast_to(
            positions < self.num_prefix_tokens, (batch_size, length)
        )
        if pinned is not None:
            all_pinned = ops.logical_or(all_pinned, ops.cast(pinned, "bool"))
        if mask is not None:
            all_pinned = ops.logical_and(all_pinned, ops.cast(mask, "bool"))
        return all_pinned

    def routed_length(self, length, reduction_factor=None):
        """The k of a sequence of `length` tokens, an int or int tensor.

        At the router's own reduction factor, or another.
        """
        num_routed = routed_length(
            length, reduction_factor or self.reduction_factor
        )
        least = max(self.num_prefix_tokens, self.num_pinned)
        if num_routed is length or least == 0:
            return num_routed
        return _minimum(_maximum(num_routed, least), length)

    def _scores(self, inputs):
        """Scores of shape `(batch_size, n)`, in float32."""
        if self.kernel is None:
            # The first tokens score highest.
            batch_size, length = ops.shape(inputs)[:2]
            positions = ops.arange(length, dtype="float32")
            return ops.broadcast_to(-positions, (batch_size, length))
        inputs = ops.cast(inputs, "float32")
        kernel = ops.cast(self.kernel, "float32")
        if fuses_reductions():
            # The cast is part of the sum; a matrix product would read all
            # tokens again, in float32, and on a GPU round them.
            return ops.sum(inputs * ops.squeeze(kernel, -1), axis=-1)
        return ops.squeeze(ops.matmul(inputs, kernel), -1)

    def _weights_and_best(self, scores, num_chosen, mask):
        """Weights of all scores, and the positions of the best, best first."""
        nothing_to_choose = isinstance(num_chosen, int) and num_chosen == 0
        if self.router in SOLVERS and not nothing_to_choose:
            return soft_top_k_and_best(
                scores,
                num_chosen,
                epsilon=self.epsilon,
                solver=self.router,
                mask=mask,
            )
        weights = _ones(scores, mask)
        if self.router == "sigmoid":
            weights = weights * ops.sigmoid(scores)
        return weights, best_positions(scores, num_chosen, mask)

    def _weights_beside(self, pinned, scores, num_routed, mask):
        """Weights of all scores, where the pinned ones have 1."""
        free = ops.logical_not(pinned)
        if mask is not None:
            free = ops.logical_and(free, mask)
        num_pinned = ops.sum(ops.cast(pinned, "int32"), axis=-1)
        budget = ops.cast(num_routed, "int32") - num_pinned
        weights, _ = self._weights_and_best(
            scores, ops.maximum(budget, 1), free
        )
        weights = weights * ops.cast(
            ops.expand_dims(budget > 0, -1), weights.dtype
        )
        return ops.where(pinned, ops.ones_like(weights), weights)

    def _route_all(self, scores, mask, pinned):
        if self.router in ("exact", "first_k"):
            return _constant(ops.ones_like(scores), scores)
        length = ops.shape(scores)[1]
        if pinned is not None:
            return self._weights_beside(pinned, scores, length, mask)
        num_prefix = _minimum(self.num_prefix_tokens, length)
        weights, _ = self._weights_and_best(
            scores[:, num_prefix:],
            length - num_prefix,
            None if mask is None else mask[:, num_prefix:],
        )
        prefix_weights = _ones(scores[:, :num_prefix], mask)
        return ops.concatenate([prefix_weights, weights], axis=1)

    def compute_mask(self, inputs, previous_mask):
        # Routed padding has weight 0; neither output has a mask of its own.
        return None

    def compute_output_spec(
        self, inputs, mask=None, pinned=None, num_routed=None
    ):
        batch_size, length = inputs.shape[:2]
        num_routed = None if length is None else self.routed_length(length)
        shape = (batch_size, num_routed)
        return (
            keras.KerasTensor(shape, dtype="float32"),
            keras.KerasTensor(shape, dtype="int32"),
        )

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "reduction_factor": self.reduction_factor,
                "router": self.router,
                "epsilon": self.epsilon,
                "num_prefix_tokens": self.num_prefix_tokens,
                "kernel_initializer": keras.initializers.serialize(
                    self.kernel_initializer
                ),
            }
        )
        return config

    @classmethod
    def from_config(cls, config):
        # What 0.1.0 called it before it was released.
        if "method" in config:
            config = {**config, "router": config["method"]}
            del config["method"]
        return cls(**config)


def _constant(values, scores):
    """Values whose gradient in the scores is 0, and not absent."""
    if lacks_gradients():
        return values + 0.0 * scores
    # Scores that nothing depends on kept XLA from fusing what is around them.
    return values


def _ones(scores, mask):
    """Weight 1 for each token but padding; `mask` may be longer."""
    if mask is None:
        return ops.ones_like(scores)
    return ops.cast(mask[:, : ops.shape(scores)[1]], scores.dtype)


def _statically_equal(first, second):
    return (
        isinstance(first, int) and isinstance(second, int) and first == second
    )


def _minimum(first, second):
    if isinstance(first, int) and isinstance(second, int):
        return min(first, second)
    return ops.minimum(first, second)


def _maximum(first, second):
    if isinstance(first, int) and isinstance(second, int):
        return max(first, second)
    return ops.maximum(first, second)
