import keras
from keras import ops

from keras_coda.validation import validate_positive_integer


@keras.saving.register_keras_serializable(package="keras_coda")
class Prefix(keras.layers.Layer):
    """Trained keys and values, which every query attends to.

    They come before the keys and values of the tokens, after these were turned
    by their positions, of which a prefix has none. It starts out random, and
    unlike a fresh adapter a fresh prefix changes what attention returns:
    softmax gives it a share.

    Args:
        prefix_length: int >= 1. Number of keys, and of values.
        num_heads: int >= 1. Number of key heads.
        head_dim: int >= 1. Width of a head.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        key: float tensor of shape `(batch_size, m, num_heads, head_dim)`.
        value: tensor of the shape of `key`.
        attention_mask: optional bool tensor of shape `(batch_size or 1, k or 1,
            m)`, true where a query may attend to a key.

    Returns:
        A tuple of the three with `prefix_length + m` keys in the place of m;
        the last is `None` if there was no mask.

    Raises:
        ValueError: if an argument is below 1.
        TypeError: if an argument is not an integer.

    Example:

    >>> prefix = keras_coda.layers.Prefix(3, num_heads=2, head_dim=4)
    >>> heads = np.ones((1, 5, 2, 4))
    >>> key, value, _ = prefix(heads, heads)
    >>> print(tuple(key.shape))
    (1, 8, 2, 4)

    Reference:
        [Li and Liang, 2021](https://arxiv.org/abs/2101.00190), section 4.2,
        trained without the network of section 4.3, as in
        [Liu et al., 2022](https://arxiv.org/abs/2110.07602);
        [He et al., 2022](https://arxiv.org/abs/2110.04366), section 2.2.
    """

    def __init__(self, prefix_length, num_heads, head_dim, **kwargs):
        super().__init__(**kwargs)
        self.prefix_length = validate_positive_integer(
            "prefix_length", prefix_length
        )
        self.num_heads = validate_positive_integer("num_heads", num_heads)
        self.head_dim = validate_positive_integer("head_dim", head_dim)

    def build(self, *shapes):
        self.key, self.value = (
            self.add_weight(
                name=name,
                shape=(self.prefix_length, self.num_heads, self.head_dim),
                initializer=keras.initializers.RandomNormal(stddev=0.02),
            )
            for name in ("key", "value")
        )

    def call(self, key, value, attention_mask=None):
        key, value = (
            self._prepend(own, heads)
            for own, heads in ((self.key, key), (self.value, value))
        )
        if attention_mask is not None:
            shape = (*ops.shape(attention_mask)[:2], self.prefix_length)
            attention_mask = ops.concatenate(
                [ops.ones(shape, "bool"), attention_mask], axis=-1
            )
        return key, value, attention_mask

    def _prepend(self, own, heads):
        shape = (ops.shape(heads)[0], *own.shape)
        return ops.concatenate([ops.broadcast_to(own, shape), heads], axis=1)

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "prefix_length": self.prefix_length,
                "num_heads": self.num_heads,
                "head_dim": self.head_dim,
            }
        )
        return config
