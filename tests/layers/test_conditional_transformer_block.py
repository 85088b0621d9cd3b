import keras
import numpy as np
import pytest

import keras_coda
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers import TransformerBlock
from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Rows
from keras_coda.layers.routing_scope import RoutingScope
from tests import reference
from tests.backend_helpers import JIT_COMPILE
from tests.backend_helpers import jit
from tests.backend_helpers import to_numpy
from tests.layer_checks import check_layer
from tests.layer_checks import randomize_weights

INPUTS = np.random.default_rng(0).normal(size=(4, 10, 8)).astype("float32")
# At r = 3 and k = 4: a full row, a padded one, one with fewer real tokens than
# k, and one of padding alone.
PADDING_MASK = np.arange(10) < np.array([[10], [6], [2], [0]])

PRE_LN = {"normalization": "rms", "gated": True}
POST_LN = {"normalize_first": False, "normalization": "layer", "gated": False}
BLOCKS = pytest.mark.parametrize(
    "block_settings", [PRE_LN, POST_LN], ids=["pre_ln", "post_ln"]
)
ATTENTIONS = pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])


def make_layer(block_settings=PRE_LN, **settings):
    settings = {"reduction_factor": 3, "adapter_dim": 5, **settings}
    block = TransformerBlock(
        num_heads=4,
        intermediate_dim=16,
        num_key_value_heads=2,
        dtype=settings.get("dtype"),
        name="block",
        **block_settings,
    )
    return ConditionalTransformerBlock(block, **settings)


def random_layer(block_settings=PRE_LN, **settings):
    """A layer whose router is undecided enough for weights below 1."""
    layer = make_layer(block_settings, **{"epsilon": 0.5, **settings})
    layer.build((None, None, 8))
    randomize_weights(layer)
    return layer


def sequential(layer, length=None):
    return keras.Sequential([keras.Input((length, 8)), layer])


def predict(model, inputs):
    return model.predict(inputs, batch_size=len(inputs), verbose=0)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


# Basics


@BLOCKS
def test_basics(block_settings):
    num_norm_weights = 2 if block_settings is PRE_LN else 4
    num_frozen = 7 if block_settings is PRE_LN else 6
    check_layer(
        lambda **kwargs: make_layer(
            block_settings,
            attention="k_to_k",
            router="sigmoid",
            epsilon=0.1,
            num_prefix_tokens=1,
            adapter_activation="gelu",
            adapter_scale=0.5,
            shortcut_dim=3,
            **kwargs,
        ),
        input_shape=(4, 10, 8),
        output_shape=(4, 10, 8),
        # Four each of adapter and shortcut, the router's one, and the norms'.
        num_trainable_weights=4 + 4 + 1 + num_norm_weights,
        num_non_trainable_weights=num_frozen,
    )


def test_the_whole_block_can_be_trained():
    layer = random_layer(freeze_block=False)
    assert len(layer.trainable_weights) == 4 + 1 + 9
    revived = ConditionalTransformerBlock.from_config(layer.get_config())
    revived.build((None, None, 8))
    assert len(revived.trainable_weights) == 4 + 1 + 9


# Values


@BLOCKS
@pytest.mark.parametrize("mask", [None, PADDING_MASK], ids=["full", "padded"])
def test_no_reduction_and_a_fresh_adapter_is_the_wrapped_block(
    block_settings, mask
):
    layer = random_layer(block_settings, reduction_factor=1)
    for weight in layer.adapter.up.weights:
        weight.assign(np.zeros(weight.shape))
    expected = to_numpy(layer.block(INPUTS, padding_mask=mask))
    actual = to_numpy(layer(INPUTS, padding_mask=mask))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)
    assert_close(
        expected, reference.transformer_block(layer.block, INPUTS, mask)
    )


@BLOCKS
@ATTENTIONS
@pytest.mark.parametrize("mask", [None, PADDING_MASK], ids=["full", "padded"])
def test_values(block_settings, attention, mask):
    layer = random_layer(block_settings, attention=attention)
    expected = reference.conditional_block(layer, INPUTS, mask)
    assert_close(to_numpy(layer(INPUTS, padding_mask=mask)), expected)


@pytest.mark.parametrize("reduction_factor", [1, 3, 10])
@pytest.mark.parametrize("mask", [None, PADDING_MASK], ids=["full", "padded"])
def test_shortcut_estimates_what_is_left_out(reduction_factor, mask):
    layer = random_layer(reduction_factor=reduction_factor, shortcut_dim=3)
    expected = reference.conditional_block(layer, INPUTS, mask)
    assert_close(to_numpy(layer(INPUTS, padding_mask=mask)), expected)


def test_no_reduction_with_any_shortcut_is_the_same_as_without():
    layer = random_layer(reduction_factor=1, shortcut_dim=3)
    expected = to_numpy(layer(INPUTS))
    for weight in layer.shortcut.weights:
        weight.assign(np.full(weight.shape, 7.0))
    assert np.array_equal(to_numpy(layer(INPUTS)), expected)


@ATTENTIONS
def test_attention_mask_follows_the_routed_tokens(attention):
    # Each token may attend to itself and to about half of the others.
    rng = np.random.default_rng(1)
    mask = rng.random((4, 10, 10)) < 0.5
    mask |= np.eye(10, dtype=bool)
    layer = random_layer(attention=attention)
    expected = reference.conditional_block(layer, INPUTS, None, mask)
    assert_close(to_numpy(layer(INPUTS, attention_mask=mask)), expected)
    shared = mask[:1].repeat(4, axis=0)
    expected = reference.conditional_block(layer, INPUTS, None, shared)
    assert_close(to_numpy(layer(INPUTS, attention_mask=mask[:1])), expected)
    # Both masks at once; what padding may attend to is another question.
    actual = to_numpy(
        layer(INPUTS, padding_mask=PADDING_MASK, attention_mask=mask)
    )
    assert np.isfinite(actual).all()
    mask = mask | ~PADDING_MASK[..., None]
    expected = reference.conditional_block(layer, INPUTS, PADDING_MASK, mask)
    assert_close(actual[PADDING_MASK], expected[PADDING_MASK])


def test_prefix_tokens_are_updated_in_full():
    # Only the first token is routed, with weight 1, and sees itself alone.
    layer = random_layer(
        reduction_factor=10, num_prefix_tokens=1, attention="k_to_k"
    )
    outputs = to_numpy(layer(INPUTS))
    hidden = layer.block.attention_input(INPUTS)
    expected = INPUTS + to_numpy(layer.adapter(hidden))
    first = reference.transformer_block(layer.block, INPUTS[:, :1])
    expected[:, :1] += first - INPUTS[:, :1]
    assert_close(outputs, expected)


# Padding


@BLOCKS
@ATTENTIONS
def test_padding_further_changes_nothing(block_settings, attention):
    layer = random_layer(
        block_settings, attention=attention, reduction_factor=4
    )
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(3, 128, 8)).astype("float32")
    mask = np.arange(128) < np.array([[64], [40], [9]])
    # 16 tokens are routed in both.
    short = to_numpy(jit(layer)(inputs[:, :64], mask[:, :64]))
    layer.reduction_factor = 8
    # The padding is no tamer than the tokens.
    inputs = np.where(mask[..., None], inputs, 100.0).astype("float32")
    long = to_numpy(jit(layer)(inputs, mask))
    assert_close(long[:, :64][mask[:, :64]], short[mask[:, :64]])
    assert np.isfinite(long).all()


@pytest.mark.parametrize(
    "router", ["exact", "coordinate_descent", "sigmoid", "first_k"]
)
@pytest.mark.parametrize("reduction_factor", [1, 3])
@ATTENTIONS
def test_a_row_of_padding_is_finite(router, reduction_factor, attention):
    layer = random_layer(
        router=router, reduction_factor=reduction_factor, attention=attention
    )
    outputs = to_numpy(layer(INPUTS, padding_mask=PADDING_MASK))
    assert np.isfinite(outputs).all()
    if reduction_factor == 3:
        # It gets the adapter's update and no other.
        hidden = layer.block.attention_input(INPUTS)
        expected = INPUTS + to_numpy(layer.adapter(hidden))
        assert_close(outputs[3], expected[3])


class WithMask(keras.Model):
    """Token ids to the mean of the real tokens' outputs."""

    def __init__(self, embedding, layer):
        super().__init__()
        self.embedding = embedding
        self.layer = layer
        self.pooling = keras.layers.GlobalAveragePooling1D()

    def call(self, inputs):
        return self.pooling(self.layer(self.embedding(inputs)))


def sequential_with_mask(embedding, layer):
    pooling = keras.layers.GlobalAveragePooling1D()
    return keras.Sequential([embedding, layer, pooling])


def functional_with_mask(embedding, layer):
    inputs = keras.Input((10,), dtype="int32")
    outputs = layer(embedding(inputs))
    outputs = keras.layers.GlobalAveragePooling1D()(outputs)
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize(
    "make_model", [sequential_with_mask, functional_with_mask, WithMask]
)
def test_keras_mask_is_used_and_passed_on(make_model):
    token_ids = np.where(PADDING_MASK[:3], 1 + np.arange(30).reshape(3, 10), 0)
    embedding = keras.layers.Embedding(31, 8, mask_zero=True)
    embedding.build()
    randomize_weights(embedding)
    layer = random_layer()
    embedded = to_numpy(embedding(token_ids))
    outputs = reference.conditional_block(layer, embedded, token_ids > 0)
    expected = [row[ids > 0].mean(0) for row, ids in zip(outputs, token_ids)]
    model = make_model(embedding, layer)
    assert_close(predict(model, token_ids), expected)


def test_padding_mask_takes_precedence_over_the_keras_mask():
    token_ids = np.arange(40).reshape(4, 10) * np.ones_like(PADDING_MASK)
    token_ids[:, 8:] = 0
    embedding = keras.layers.Embedding(40, 8, mask_zero=True)
    layer = random_layer()
    embedded = embedding(token_ids)
    expected = reference.conditional_block(
        layer, to_numpy(embedded), PADDING_MASK
    )
    actual = to_numpy(layer(embedded, padding_mask=PADDING_MASK))
    assert_close(actual, expected)


# Shapes, and ways to run


@pytest.mark.parametrize("length", [1, 2])
def test_short_sequences(length):
    layer = random_layer()
    inputs = INPUTS[:, :length]
    expected = reference.conditional_block(layer, inputs)
    if length == 1:
        # The one token is routed with weight 1, as in the wrapped block.
        dense = reference.transformer_block(layer.block, inputs)
        hidden = layer.block.attention_input(inputs)
        assert_close(expected, dense + to_numpy(layer.adapter(hidden)))
    assert_close(to_numpy(layer(inputs)), expected)


@pytest.mark.parametrize("num_prefix_tokens", [0, 1])
@pytest.mark.parametrize("jit_compile", JIT_COMPILE)
def test_batch_size_and_length_may_change(jit_compile, num_prefix_tokens):
    layer = random_layer(num_prefix_tokens=num_prefix_tokens)
    model = sequential(layer)
    model.compile(jit_compile=jit_compile)
    for batch_size, length in ((4, 10), (2, 7), (1, 1)):
        inputs = INPUTS[:batch_size, :length]
        expected = reference.conditional_block(layer, inputs)
        assert_close(predict(model, inputs), expected)


def test_compiled_or_not_the_model_predicts_the_same():
    model = sequential(random_layer(), length=10)
    model.compile(run_eagerly=True)
    expected = predict(model, INPUTS)
    for jit_compile in JIT_COMPILE:
        model.compile(jit_compile=jit_compile)
        assert_close(predict(model, INPUTS), expected)


# Training


@pytest.mark.parametrize(
    "block_settings, attention",
    [(PRE_LN, "k_to_k"), (POST_LN, "k_to_all")],
    ids=["pre_ln", "post_ln"],
)
def test_fit_trains_adapter_router_and_norms_alone(block_settings, attention):
    layer = make_layer(block_settings, attention=attention, epsilon=0.5)
    model = sequential(layer, length=10)
    d, adapter_dim = 8, 5
    num_norm_weights = d if block_settings is PRE_LN else 2 * d
    num_trainable = sum(np.prod(w.shape) for w in model.trainable_weights)
    assert num_trainable == (
        2 * d * adapter_dim + adapter_dim + d + d + 2 * num_norm_weights
    )
    trained = {w.path for w in model.trainable_weights}
    before = {w.path: to_numpy(w) for w in model.weights}
    targets = np.random.default_rng(1).normal(size=(4, 10, 8))
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(INPUTS, targets, epochs=3, verbose=0)
    for weight in model.weights:
        changed = to_numpy(weight) != before[weight.path]
        assert np.any(changed) == (weight.path in trained), weight.path
        assert np.isfinite(to_numpy(weight)).all()


def test_unfreezing_a_model_keeps_the_block_frozen():
    layer = make_layer()
    model = sequential(layer, length=10)
    trained = {w.path for w in model.trainable_weights}
    model.trainable = False
    assert model.trainable_weights == []
    model.trainable = True
    assert {w.path for w in model.trainable_weights} == trained
    layer.trainable = False
    layer.trainable = True
    assert {w.path for w in model.trainable_weights} == trained


def test_mixed_precision():
    layer = make_layer(dtype="mixed_bfloat16")
    model = sequential(layer, length=10)
    model.compile("adam", "mse")
    model.fit(INPUTS, INPUTS, verbose=0)
    outputs = jit(layer)(INPUTS, PADDING_MASK)
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert np.isfinite(to_numpy(outputs)).all()
    assert layer.router.compute_dtype == "float32"
    weights, _ = layer.router(keras.ops.cast(INPUTS, "bfloat16"))
    assert keras.backend.standardize_dtype(weights.dtype) == "float32"
    assert layer.adapter.compute_dtype == "bfloat16"
    # Near the same block in float32.
    in_float32 = make_layer()
    in_float32.build((None, 10, 8))
    in_float32.set_weights(layer.get_weights())
    expected = to_numpy(in_float32(INPUTS, padding_mask=PADDING_MASK))
    assert np.abs(to_numpy(outputs) - expected).mean() < 0.05


# Saving


@pytest.mark.parametrize(
    "block_settings, freeze_block",
    [(PRE_LN, True), (POST_LN, True), (PRE_LN, False)],
    ids=["pre_ln", "post_ln", "not_frozen"],
)
def test_saving(block_settings, freeze_block, tmp_path):
    layer = random_layer(block_settings, freeze_block=freeze_block)
    model = sequential(layer, length=10)
    path = tmp_path / "model.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    np.testing.assert_allclose(
        predict(loaded, INPUTS), predict(model, INPUTS), rtol=0, atol=1e-6
    )
    flags = [(w.name, w.trainable) for w in model.weights]
    assert [(w.name, w.trainable) for w in loaded.weights] == flags
    assert len(loaded.trainable_weights) == len(layer.trainable_weights)


# Errors


@pytest.mark.parametrize(
    "arguments, error, match",
    [
        ({"reduction_factor": 0.5}, ValueError, "reduction_factor=0.5"),
        ({"reduction_factor": "4"}, TypeError, "reduction_factor='4'"),
        ({"reduction_factor": [2, 4]}, TypeError, "must be a number"),
        ({"adapter_dim": 0}, ValueError, "`adapter_dim` must be at least 1"),
        ({"adapter_dim": 1.5}, TypeError, "`adapter_dim` must be an integer"),
        ({"attention": "all"}, ValueError, "`attention` must be one of.*'all'"),
        ({"router": "best"}, ValueError, "must be one of.*'best'"),
        ({"epsilon": 0}, ValueError, "`epsilon` must be a positive number"),
        ({"num_prefix_tokens": -1}, ValueError, "must be at least 0"),
    ],
)
def test_bad_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        make_layer(**arguments)


def test_a_block_that_is_no_dense_block():
    with pytest.raises(TypeError, match="`block` must be a.*DenseBlock.*Dense"):
        ConditionalTransformerBlock(keras.layers.Dense(8))


def test_masks_of_the_wrong_shape():
    layer = random_layer()
    with pytest.raises(ValueError, match="`padding_mask` must have shape"):
        layer(INPUTS, padding_mask=PADDING_MASK[:, :9])
    for shape in ((4, 10), (4, 10, 9), (3, 10, 10)):
        with pytest.raises(ValueError, match="`attention_mask` must have"):
            layer(INPUTS, attention_mask=np.ones(shape, bool))


# Routing that is given, watched and pinned


@ATTENTIONS
def test_route_takes_a_routing_and_hands_one_out(attention):
    tensors = keras.ops.convert_to_tensor(INPUTS)
    layer = random_layer(attention=attention)
    expected, routing = layer.route(tensors, padding_mask=PADDING_MASK)
    assert routing.weights.shape == routing.rows.indices.shape == (4, 4)
    other = random_layer(attention=attention)
    other.router.kernel.assign(-layer.router.kernel)
    outputs, same = other.route(
        tensors, padding_mask=PADDING_MASK, routing=routing
    )
    assert same is routing
    assert_close(to_numpy(outputs), to_numpy(expected))


def test_a_scope_records_and_chooses():
    tensors = keras.ops.convert_to_tensor(INPUTS)
    layer = random_layer()
    expected, routing = layer.route(tensors, padding_mask=PADDING_MASK)
    with RoutingScope() as scope:
        layer(INPUTS, padding_mask=PADDING_MASK)
    record = scope.record(layer)
    assert_close(to_numpy(record.outputs), to_numpy(expected))
    assert_close(to_numpy(record.inputs), INPUTS)
    np.testing.assert_array_equal(
        to_numpy(record.routing.rows.indices), to_numpy(routing.rows.indices)
    )
    everything = BlockRouting(keras.ops.ones((4, 10)), Rows())
    with RoutingScope(lambda *call: everything) as scope:
        chosen = layer(INPUTS)
        with RoutingScope():
            # The inner scope has the router choose.
            assert_close(to_numpy(layer(INPUTS)), to_numpy(layer(INPUTS)))
    layer.reduction_factor = 1
    assert_close(to_numpy(chosen), to_numpy(layer(INPUTS)))
    assert scope.record(layer).routing is everything


@BLOCKS
@ATTENTIONS
def test_pinned_tokens(block_settings, attention):
    prefix = random_layer(
        block_settings, attention=attention, num_prefix_tokens=2
    )
    pinning = random_layer(block_settings, attention=attention)
    pinned = np.tile(np.arange(10) < 2, (4, 1))
    assert_close(
        to_numpy(pinning(INPUTS, padding_mask=PADDING_MASK, pinned=pinned)),
        to_numpy(prefix(INPUTS, padding_mask=PADDING_MASK)),
    )


@BLOCKS
@pytest.mark.parametrize("reduction_factor", [1, 3])
def test_half_precision_around_a_block_in_float32(
    block_settings, reduction_factor
):
    block = TransformerBlock(4, 16, dtype="float32", **block_settings)
    layer = ConditionalTransformerBlock(
        block, reduction_factor, dtype="bfloat16", shortcut_dim=2
    )
    outputs = layer(keras.ops.cast(INPUTS, "bfloat16"))
    assert keras.backend.standardize_dtype(outputs.dtype) == "bfloat16"
    assert np.all(np.isfinite(to_numpy(outputs)))


def test_left_out_with_its_adapter(tmp_path):
    layer = random_layer(
        reduction_factor=float("inf"), adapter_dim=2, shortcut_dim=2
    )
    model = sequential(layer, length=10)
    np.testing.assert_array_equal(predict(model, INPUTS), INPUTS)
    with RoutingScope() as scope:
        layer(INPUTS)
    assert scope.record(layer).routing.rows.indices.shape == (4, 0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(predict(loaded, INPUTS), INPUTS)
    keras_coda.set_reduction_factor(loaded, 1)
    assert np.abs(predict(loaded, INPUTS) - INPUTS).max() > 0.1
