import keras
import numpy as np
import pytest

from keras_coda.layers import DenseBlock
from keras_coda.layers import Routed
from keras_coda.layers import TransformerBlock
from tests import reference
from tests.backend_helpers import to_numpy
from tests.layer_checks import check_layer
from tests.layer_checks import randomize_weights

INPUTS = np.random.default_rng(0).normal(size=(4, 10, 8)).astype("float32")
# The last row is all padding.
PADDING_MASK = np.arange(10) < np.array([[10], [6], [2], [0]])
CAUSAL_MASK = np.tril(np.ones((1, 10, 10), bool)).repeat(4, axis=0)

VARIANTS = {
    "paper": {},
    "post_ln": {
        "normalize_first": False,
        "normalization": "layer",
        "gated": False,
    },
    "grouped_query": {"num_key_value_heads": 2, "head_dim": 3},
    "multi_query": {"num_key_value_heads": 1, "normalization": "layer"},
}
# Four of the attention; feedforward; scales, and biases, of the norms.
NUM_WEIGHTS = {
    "paper": 4 + 3 + 2,
    "post_ln": 4 + 2 + 4,
    "grouped_query": 4 + 3 + 2,
    "multi_query": 4 + 3 + 4,
}


def make_block(variant="paper", **kwargs):
    return TransformerBlock(
        num_heads=4, intermediate_dim=16, **VARIANTS[variant], **kwargs
    )


def random_block(variant="paper", **kwargs):
    block = make_block(variant, **kwargs)
    block.build((None, None, 8))
    randomize_weights(block)
    return block


@pytest.mark.parametrize("variant", ["grouped_query", "post_ln"])
def test_basics(variant):
    check_layer(
        lambda **kwargs: make_block(variant, dropout=0.1, **kwargs),
        input_shape=(4, 10, 8),
        output_shape=(4, 10, 8),
        num_trainable_weights=NUM_WEIGHTS[variant],
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_values(variant):
    block = random_block(variant)
    assert len(block.trainable_weights) == NUM_WEIGHTS[variant]
    np.testing.assert_allclose(
        to_numpy(block(INPUTS)),
        reference.transformer_block(block, INPUTS),
        rtol=1e-4,
        atol=1e-5,
    )
    outputs = block(
        INPUTS, padding_mask=PADDING_MASK, attention_mask=CAUSAL_MASK
    )
    np.testing.assert_allclose(
        to_numpy(outputs),
        reference.transformer_block(block, INPUTS, PADDING_MASK, CAUSAL_MASK),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("variant", ["paper", "post_ln"])
def test_padding_changes_nothing(variant):
    block = random_block(variant)
    other = np.where(PADDING_MASK[..., None], INPUTS, 100.0)
    outputs = to_numpy(block(INPUTS, padding_mask=PADDING_MASK))
    other_outputs = to_numpy(
        block(other.astype("float32"), padding_mask=PADDING_MASK)
    )
    np.testing.assert_allclose(
        outputs[PADDING_MASK], other_outputs[PADDING_MASK], atol=1e-5
    )
    assert np.isfinite(other_outputs).all()


def test_keras_mask_is_used_and_passed_on():
    token_ids = np.array([[1, 2, 3, 0], [3, 0, 0, 0]])
    embedding = keras.layers.Embedding(4, 8, mask_zero=True)
    block = random_block()
    model = keras.Sequential(
        [embedding, block, keras.layers.GlobalAveragePooling1D()]
    )
    embedded = to_numpy(embedding(token_ids))
    outputs = reference.transformer_block(block, embedded, token_ids > 0)
    expected = [outputs[0, :3].mean(0), outputs[1, 0]]
    np.testing.assert_allclose(
        model.predict(token_ids, verbose=0), expected, rtol=1e-4, atol=1e-5
    )


def test_dropout_is_active_in_training_alone():
    block = random_block(dropout=0.5)
    outputs = to_numpy(block(INPUTS))
    np.testing.assert_array_equal(outputs, to_numpy(block(INPUTS)))
    dropped = to_numpy(block(INPUTS, training=True))
    assert np.abs(dropped - outputs).max() > 0.1


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"num_heads": 0}, ValueError, "`num_heads` must be at least 1"),
        ({"num_heads": 2.0}, TypeError, "`num_heads` must be an integer"),
        ({"intermediate_dim": 0}, ValueError, "`intermediate_dim` must"),
        ({"num_key_value_heads": 3}, ValueError, "must divide `num_heads`"),
        ({"num_key_value_heads": 0}, ValueError, "must be at least 1"),
        ({"head_dim": 0}, ValueError, "`head_dim` must be at least 1"),
        ({"normalization": "batch"}, ValueError, "`normalization` must be one"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        TransformerBlock(**{"num_heads": 4, "intermediate_dim": 8, **arguments})


def test_heads_that_do_not_divide():
    with pytest.raises(ValueError, match="`num_heads` must divide.*dim=10"):
        make_block().build((None, 5, 10))


def test_masks_of_the_wrong_shape():
    block = random_block()
    with pytest.raises(ValueError, match="`padding_mask` must have shape"):
        block(INPUTS, padding_mask=PADDING_MASK[:, :9])
    with pytest.raises(ValueError, match="`attention_mask` must have shape"):
        block(INPUTS, attention_mask=CAUSAL_MASK[:, :9])


def test_a_block_of_your_own_has_to_say_what_it_does():
    block = DenseBlock()
    with pytest.raises(NotImplementedError):
        block.attention_input(INPUTS)
    with pytest.raises(NotImplementedError):
        block.residual_update(Routed(INPUTS, INPUTS, INPUTS))
    with pytest.raises(NotImplementedError):
        block.norms
