import keras
import numpy as np

from keras_coda.layers.attend import attend
from tests.backend_helpers import to_numpy

RNG = np.random.default_rng(0)
QUERIES = RNG.normal(size=(2, 3, 8)).astype("float32")
CONTEXT = RNG.normal(size=(2, 5, 8)).astype("float32")


def make_attention():
    attention = keras.layers.MultiHeadAttention(2, key_dim=4, dropout=0.5)
    attention.build(QUERIES.shape, CONTEXT.shape)
    return attention


def test_at_inference_it_is_the_layer():
    attention = make_attention()
    # Shared by the queries, as padding is, or one for each.
    for num_queries in (1, 3):
        mask = RNG.integers(0, 2, (2, num_queries, 5)).astype(bool)
        mask[..., 0] = True
        for attention_mask in (None, mask):
            expected = attention(
                QUERIES, CONTEXT, attention_mask=attention_mask, training=False
            )
            actual = attend(attention, QUERIES, CONTEXT, attention_mask)
            np.testing.assert_allclose(
                to_numpy(actual), to_numpy(expected), rtol=1e-5, atol=1e-6
            )


def test_dropout_is_active_in_training():
    attention = make_attention()
    at_inference = attend(attention, QUERIES, CONTEXT, training=False)
    in_training = attend(attention, QUERIES, CONTEXT, training=True)
    assert np.abs(to_numpy(in_training - at_inference)).max() > 1e-3
