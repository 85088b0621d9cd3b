"""What every family has to show, on its tiny model.

The identity on every backend, that of its tasks under PyTorch, which compiles
nothing, the rest in turn: each family on one of the three, and on each backend
an encoder and a language model. Under PyTorch, of families that share a block
one is trained.
"""

import itertools
import pkgutil

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion import families
from keras_coda.conversion import registry
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers import ParallelAdapter
from keras_coda.layers import TokenRouter
from tests.backend_helpers import same_on_every_backend
from tests.conversion import tiny as tiny_package
from tests.conversion.models import assert_changed_and_blind_to_padding
from tests.conversion.models import assert_close
from tests.conversion.models import compute
from tests.conversion.models import randomize
from tests.conversion.tiny import LIKE_ANOTHER
from tests.conversion.tiny import tiny_models

# PyTorch compiles nothing, and has most turns.
TURNS = (*2 * ["torch"], "tensorflow", *2 * ["torch"], "jax", *13 * ["torch"])


def parametrize(names):
    return pytest.mark.parametrize(
        "tiny", [tiny_models()[name] for name in names], ids=names
    )


EVERY = sorted(tiny_models())
# Neighbours in the alphabet are often relatives.
IN_TURN = [
    name
    for name, backend in zip(EVERY, itertools.cycle(TURNS))
    if backend == keras.config.backend()
]
TRAINED = [
    name
    for name in IN_TURN
    if keras.config.backend() != "torch" or name not in LIKE_ANOTHER
]
every_family = parametrize(EVERY)
families_in_turn = parametrize(IN_TURN)


def test_every_family_is_tested():
    # Other tests register families of their own.
    known = {
        cls.__name__
        for cls in registry.backbone_classes
        if hasattr(keras_hub.models, cls.__name__)
    }
    assert known == set(tiny_models())
    tested = {
        module.name for module in pkgutil.iter_modules(tiny_package.__path__)
    }
    modules = {
        module.name for module in pkgutil.iter_modules(families.__path__)
    }
    assert modules == tested


@same_on_every_backend
def test_every_task_is_tested():
    for name, tiny in tiny_models().items():
        backbone_cls = getattr(keras_hub.models, name)
        coda_cls = registry.backbone_classes[backbone_cls]
        tested = {type(task) for task, _ in tiny.tasks(tiny.make())}
        known = {cls.__bases__[1] for cls in registry.tasks_of(coda_cls)}
        assert {cls for cls in known if _is_public(cls)} == tested


def _is_public(cls):
    return hasattr(keras_hub.models, cls.__name__)


@every_family
def test_dense_at_reduction_factor_1(tiny):
    dense = tiny.make()
    inputs = tiny.inputs()
    expected = compute(dense, inputs)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    assert isinstance(coda, keras_coda.CodaBackbone)
    assert isinstance(coda, type(dense))
    assert coda.num_prefix_tokens == tiny.num_prefix_tokens
    assert_close(compute(coda, inputs), expected, atol=tiny.exact)
    for key in dense.get_config():
        if key not in ("name", "trainable"):
            value = getattr(coda, key, None)
            if not isinstance(value, keras.layers.Layer):
                assert value == getattr(dense, key, None), key


@parametrize(EVERY if keras.config.backend() == "torch" else IN_TURN)
def test_tasks_at_reduction_factor_1(tiny):
    for dense, inputs in tiny.tasks(tiny.make()):
        randomize(dense, seed=1)
        expected = compute(dense, inputs)
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert isinstance(coda, type(dense))
        assert coda.preprocessor is dense.preprocessor
        assert_close(compute(coda, inputs), expected, atol=tiny.exact)


@parametrize(EVERY if keras.config.backend() == "torch" else ["T5Backbone"])
def test_sequential_adapters(tiny):
    dense, inputs = tiny.make(), tiny.inputs()
    expected = compute(dense, inputs)
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=1, adapter="sequential", adapter_dim=4
    )
    assert_close(compute(coda, inputs), expected, atol=tiny.exact)
    for layer in coda.trained_layers():
        randomize(layer, seed=2)
    assert_changed_and_blind_to_padding(tiny, coda, expected)


@families_in_turn
@pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])
def test_padding_changes_nothing(tiny, attention):
    if tiny.real is None:
        pytest.skip("no padding")
    if tiny.routes_by_row and attention == "k_to_k":
        pytest.skip("refused")
    coda = keras_coda.coda_wrap(
        tiny.make(), reduction_factor=2, attention=attention
    )
    inputs = tiny.inputs(16)
    expected = tiny.real(compute(coda, inputs), inputs)
    if not tiny.routes_by_row:
        # The same k = 8 of twice the length.
        coda.reduction_factor = 4
    padded = tiny.inputs(32)
    outputs = tiny.real(compute(coda, padded), padded)
    assert_close(outputs, expected)


@families_in_turn
def test_reduction_changes_outputs(tiny):
    coda = keras_coda.coda_wrap(tiny.make(), reduction_factor=1)
    expected = keras.tree.flatten(compute(coda, tiny.inputs()))
    coda.reduction_factor = 4
    reduced = keras.tree.flatten(compute(coda, tiny.inputs()))
    difference = [
        np.abs(a - b).max()
        for a, b in zip(reduced, expected)
        if a.dtype != bool
    ]
    assert max(difference) > 1e-3


@families_in_turn
def test_files(tiny, tmp_path):
    coda = keras_coda.coda_wrap(tiny.make(), reduction_factor=2, adapter_dim=4)
    for layer in coda.trained_layers():
        randomize(layer, seed=2)
    expected = compute(coda, tiny.inputs())
    coda.save(tmp_path / "model.keras")
    coda.save_to_preset(tmp_path / "preset")
    coda.save_adapter(tmp_path / "adapter.safetensors")

    loaded = keras.models.load_model(tmp_path / "model.keras")
    preset = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    # The same pretrained weights in another object.
    adapted = keras_coda.coda_wrap(tiny.make(), adapter_dim=4)
    adapted.load_adapter(tmp_path / "adapter.safetensors")
    trained = {w.path for w in coda.trainable_weights}
    for copy in (loaded, preset, adapted):
        assert type(copy) is type(coda)
        assert copy.reduction_factor == 2
        assert {w.path for w in copy.trainable_weights} == trained
        assert_close(compute(copy, tiny.inputs()), expected)


@families_in_turn
def test_files_of_tasks(tiny, tmp_path):
    for dense, inputs in tiny.tasks(tiny.make()):
        coda = keras_coda.coda_wrap(dense, reduction_factor=2)
        randomize(coda, seed=2)
        expected = compute(coda, inputs)
        coda.save_to_preset(tmp_path / dense.name)
        preset = type(dense).from_preset(str(tmp_path / dense.name))
        assert type(preset) is type(coda)
        assert_close(compute(preset, inputs), expected)
        coda.save(tmp_path / "task.keras")
        loaded = keras.models.load_model(tmp_path / "task.keras", compile=False)
        assert_close(compute(loaded, inputs), expected)


def fit(model, inputs):
    """Fits the float outputs of a model to random targets."""
    outputs = keras.tree.flatten(model(model.input))
    outputs = [x for x in outputs if "float" in x.dtype]
    model = keras.Model(model.input, outputs)
    rng = np.random.default_rng(0)
    targets = [
        rng.normal(size=x.shape).astype("float32")
        for x in keras.tree.flatten(model.predict(inputs, verbose=0))
    ]
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    history = model.fit(inputs, targets, epochs=3, verbose=0)
    assert np.all(np.isfinite(history.history["loss"]))


@parametrize(TRAINED)
def test_fit_trains_what_it_should(tiny):
    dense = tiny.make(dtype=tiny.fit_dtype)
    inputs = tiny.inputs()
    expected = compute(dense, inputs)
    # Soft enough for every router to get a gradient here.
    coda = keras_coda.coda_wrap(dense, reduction_factor=3, epsilon=1.0)
    assert coda.dtype_policy.name == tiny.fit_dtype
    before = coda.get_weights()
    trained = {id(weight) for weight in trained_weights(coda).values()}
    fit(coda, inputs)
    for weight, old, new in zip(coda.weights, before, coda.get_weights()):
        changed = not np.array_equal(old, new)
        expected_change = id(weight) in trained
        if weight.path.endswith(tiny.without_gradient):
            assert expected_change, weight.path
            expected_change = False
        assert changed == expected_change, weight.path
    kinds = {type(layer) for layer in coda.trained_layers()}
    assert {ParallelAdapter, TokenRouter} < kinds
    assert all(
        layer.compute_dtype == "float32"
        for layer in coda.trained_layers()
        if isinstance(layer, TokenRouter)
    )
    # The model that was converted computes what it did.
    assert_close(compute(dense, inputs), expected, atol=0)


@parametrize(TRAINED)
def test_calibrate_and_align(tiny):
    dense, inputs = tiny.make(), tiny.inputs()
    coda = keras_coda.coda_wrap(dense, reduction_factor=2, shortcut_dim=4)
    fitted = keras_coda.training.calibrate(
        coda, inputs, observed="tokens", verbose=0
    ).blocks
    assert list(fitted) == list(coda.named_blocks)
    for values in fitted.values():
        assert set(values) == {"shortcut", "router"}
        assert values["shortcut"] > 0
    before = {
        path: keras.ops.convert_to_numpy(weight)
        for path, weight in trained_weights(coda).items()
    }
    history = keras_coda.training.align(
        coda, dense, inputs, epochs=2, verbose=0
    )
    assert np.isfinite(history.history["hidden_error"][0])
    for path, weight in trained_weights(coda).items():
        changed = not np.array_equal(
            before[path], keras.ops.convert_to_numpy(weight)
        )
        # What comes after the last block, a decoder say, is not observed.
        in_block = any(
            id(weight) == id(own)
            for block in coda.conditional_blocks
            for layer in block.trained_layers()
            for own in layer.weights
        )
        if in_block:
            assert changed, path
