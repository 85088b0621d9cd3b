import keras
import numpy as np
import pytest

from keras_coda.layers import Prefix
from keras_coda.layers.attend import attend
from keras_coda.layers.attend import attend_heads
from keras_coda.layers.attend import can_absorb
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


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_heads_that_share_keys(num_queries, soft_cap):
    # One query is a step of a language model.
    query = RNG.normal(size=(2, num_queries, 4, 8))
    key, value = RNG.normal(size=(2, 2, 5, 2, 8))
    mask = RNG.integers(0, 2, (2, num_queries, 5)).astype(bool)
    mask[..., 0] = True
    bias = RNG.normal(size=mask.shape)
    heads = map(keras.ops.convert_to_tensor, (query, key, value))
    query, key, value = (keras.ops.cast(x, "float32") for x in heads)

    def by_copies(bias):
        keys, values = (to_numpy(x).repeat(2, axis=2) for x in (key, value))
        scores = np.einsum("bkhe,bmhe->bhkm", to_numpy(query), keys) / 8**0.5
        if soft_cap is not None:
            scores = np.tanh(scores / soft_cap) * soft_cap
        weights = np.exp(scores + bias[:, None])
        weights /= weights.sum(axis=-1, keepdims=True)
        return np.einsum("bhkm,bmhe->bkhe", weights, values)

    for name, value_of, as_bias in (
        ("mask", keras.ops.convert_to_tensor(mask), np.log(mask + 1e-30)),
        ("bias", keras.ops.cast(bias, "float32"), bias),
    ):
        actual = attend_heads(
            query, key, value, soft_cap=soft_cap, **{name: value_of}
        )
        np.testing.assert_allclose(
            to_numpy(actual), by_copies(as_bias), rtol=1e-5, atol=1e-6
        )


def test_dropout_is_active_in_training():
    attention = make_attention()
    for prefix in (None, Prefix(3, num_heads=2, head_dim=4)):
        at_inference, in_training = (
            attend(attention, QUERIES, CONTEXT, None, training, prefix)
            for training in (False, True)
        )
        assert np.abs(to_numpy(in_training - at_inference)).max() > 1e-3


def test_few_queries_absorb_the_projections():
    # 1 query of 64 keys: the keys and values are not projected.
    attention = make_attention()
    for weight in attention.weights:
        weight.assign(RNG.normal(size=weight.shape))
    context = RNG.normal(size=(2, 64, 8)).astype("float32")
    mask = RNG.integers(0, 2, (2, 1, 64)).astype(bool)
    queries = QUERIES[:, :1]
    for attention_mask in (None, mask):
        expected = attention(
            queries, context, attention_mask=attention_mask, training=False
        )
        # Shows that it is not used.
        attention.key_dense.bias.assign(np.full((2, 4), np.nan))
        actual = attend(attention, queries, context, attention_mask)
        attention.key_dense.bias.assign(np.ones((2, 4)))
        np.testing.assert_allclose(
            to_numpy(actual), to_numpy(expected), rtol=1e-5, atol=1e-5
        )


def test_absorbs_where_it_is_cheaper():
    projection = make_attention().key_dense
    for shapes, expected in (
        # BERT base at r = 16, r = 8, with another block for CLS alone.
        (((8, 32, 12, 64), (8, 512, 768)), True),
        (((8, 64, 12, 64), (8, 512, 768)), False),
        (((8, 1, 12, 64), (8, 512, 768)), True),
        # Fewer multiply-adds, but slower.
        (((32, 32, 12, 64), (32, 128, 768)), False),
        # Any number of tokens that attend to themselves.
        (((8, 2, 12, 64), (8, 2, 768)), False),
        (((8, None, 12, 64), (8, None, 768)), False),
    ):
        assert can_absorb(*shapes, projection) == expected
    projection.quantize("int8")
    assert not can_absorb((8, 1, 12, 64), (8, 512, 768), projection)
