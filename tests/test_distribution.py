"""Several devices, virtual ones of a CPU: `conftest.py` makes them.

Those of PyTorch are processes: `examples/test_distributed_torch.py`.
"""

import re

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import BACKEND
from tests.conversion import models
from tests.conversion.tiny import tiny_models

on_jax = pytest.mark.skipif(
    BACKEND != "jax", reason="`keras.distribution` is for JAX"
)

COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
    r"(?:-start)?\("
)


@pytest.fixture
def distribute():
    """A function that sets a distribution for the rest of the test."""
    before = keras.distribution.distribution()
    yield keras.distribution.set_distribution
    keras.distribution.set_distribution(before)


def data_parallel(model=None):
    return keras.distribution.DataParallel(
        devices=keras.distribution.list_devices()
    )


def mesh():
    return keras.distribution.DeviceMesh(
        (2, 2), ("batch", "model"), keras.distribution.list_devices()
    )


def model_parallel(model):
    return keras.distribution.ModelParallel(
        layout_map=keras_coda.layout_map(model, mesh()), batch_dim_name="batch"
    )


def collectives(function, inputs):
    """What devices exchange in a function of a batch that they share."""
    import jax

    layout = data_parallel().get_data_layout
    inputs = keras.tree.map_structure(
        lambda x: jax.device_put(x, layout(x.shape).backend_layout), inputs
    )
    return COLLECTIVE.findall(
        jax.jit(function).lower(inputs).compile().as_text()
    )


@on_jax
def test_no_row_of_a_block_leaves_its_device():
    import jax

    block = keras_coda.layers.TransformerBlock(4, intermediate_dim=64)
    layer = keras_coda.layers.ConditionalTransformerBlock(
        block,
        adapter_dim=8,
        attention="k_to_k",
        shortcut_dim=4,
        num_prefix_tokens=1,
    )
    inputs = np.random.normal(size=(8, 16, 32)).astype("float32")
    mask = np.arange(16) < np.arange(9, 17)[:, None]
    layer.build(inputs.shape)
    frozen = [weight.value for weight in layer.non_trainable_variables]
    trained = [weight.value for weight in layer.trainable_variables]

    def loss(trained, batch):
        outputs, _ = layer.stateless_call(
            trained, frozen, batch["inputs"], padding_mask=batch["mask"]
        )
        return (outputs**2).mean(), outputs

    batch = {"inputs": inputs, "mask": mask}
    assert collectives(lambda x: loss(trained, x)[1], batch) == []
    # The gradients of the weights are summed, once and together.
    gradients = jax.grad(loss, has_aux=True)
    exchanged = collectives(lambda x: gradients(trained, x)[0], batch)
    assert exchanged == ["all-reduce"]


def make_coda(name):
    coda = keras_coda.coda_wrap(tiny_models()[name].make(), reduction_factor=2)
    for layer in coda.trained_layers():
        models.randomize(layer, seed=4)
    return coda


def four_rows(name):
    """As many rows as devices."""
    return keras.tree.map_structure(
        lambda x: np.concatenate([x, x[:1]]), tiny_models()[name].inputs()
    )


@on_jax
# Which gather positions and biases besides.
@pytest.mark.parametrize(
    "name", ["T5Backbone", "LlamaBackbone", "DebertaV3Backbone"]
)
def test_no_row_of_a_model_leaves_its_device(name):
    coda = make_coda(name)
    trained = [weight.value for weight in coda.trainable_variables]
    frozen = [weight.value for weight in coda.non_trainable_variables]

    def call(inputs):
        return coda.stateless_call(trained, frozen, inputs, training=False)[0]

    assert collectives(call, four_rows(name)) == []


def fitted():
    """A classifier that was trained while r changed, and its predictions."""
    backbone = tiny_models()["BertBackbone"].make(num_layers=1, dropout=0.0)
    classifier = keras_hub.models.BertTextClassifier(
        backbone, num_classes=3, dropout=0.0
    )
    models.randomize(classifier.get_layer("logits"), seed=2)
    coda = keras_coda.coda_wrap(classifier, reduction_factor=2)
    for layer in coda.backbone.trained_layers():
        models.randomize(layer, seed=4)
    coda.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    inputs, labels = four_rows("BertBackbone"), np.array([0, 1, 2, 0])
    schedule = keras_coda.callbacks.ReductionSchedule(
        fraction=0.5, num_stages=1, verbose=0
    )
    coda.fit(
        inputs, labels, batch_size=4, epochs=2, callbacks=[schedule], verbose=0
    )
    keras_coda.set_reduction_factor(coda, 3)
    return coda, coda.predict(inputs, batch_size=4, verbose=0)


@pytest.fixture(scope="module")
def fitted_on_one_device():
    return fitted()


@on_jax
@pytest.mark.parametrize("make_distribution", [data_parallel, model_parallel])
def test_fitting_is_that_of_one_device(
    distribute, make_distribution, fitted_on_one_device
):
    expected, expected_outputs = fitted_on_one_device
    distribute(make_distribution(expected))
    actual, outputs = fitted()
    models.assert_close(outputs, expected_outputs, atol=1e-4)
    models.assert_close(
        actual.trainable_weights, expected.trainable_weights, atol=1e-4
    )
    for weight in actual.trainable_weights:
        assert weight.value.sharding.is_fully_replicated, weight.path
    for weight in actual.weights:
        if weight.path.endswith("query/kernel"):
            is_whole = weight.value.sharding.is_fully_replicated
            assert is_whole == (make_distribution is data_parallel)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="TensorFlow's own way")
def test_fitting_mirrored_is_that_of_one_device(fitted_on_one_device):
    import tensorflow as tf

    expected, expected_outputs = fitted_on_one_device
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    assert strategy.num_replicas_in_sync == 2
    with strategy.scope():
        actual, outputs = fitted()
    models.assert_close(outputs, expected_outputs, atol=1e-4)
    models.assert_close(
        actual.trainable_weights, expected.trainable_weights, atol=1e-4
    )


@on_jax
@pytest.mark.parametrize("name", ["LlamaBackbone", "GemmaBackbone"])
def test_the_layouts_of_keras_hub_match_the_frozen_weights(name):
    dense = tiny_models()[name].make()
    layouts = type(dense).get_layout_map(mesh())
    matched = {w.path for w in dense.weights if layouts[w.path] is not None}
    assert len(matched) > 8
    coda = make_coda(name)
    paths = {w.path for w in coda.weights if layouts[w.path] is not None}
    assert paths == matched
    # Of the same weights; Llama's output embeddings are left out there.
    ours = set(keras_coda.layout_map(coda, mesh()))
    assert ours - {"token_embedding/reverse_embeddings"} == matched


@on_jax
def test_what_is_no_mesh_is_refused():
    coda = make_coda("BertBackbone")
    with pytest.raises(TypeError, match="must be a `keras.distribution.Dev"):
        keras_coda.layout_map(coda, "mesh")
    with pytest.raises(ValueError, match="must be an axis of the mesh"):
        keras_coda.layout_map(coda, mesh(), "heads")
