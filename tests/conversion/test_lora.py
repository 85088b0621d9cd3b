import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.layers.partly_frozen import lora_weights
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import compute
from tests.conversion.models import t5_backbone
from tests.conversion.models import t5_inputs
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs

FAMILIES = {
    # Layers with LoRA: query and value of each attention.
    "bert": (bert_backbone, bert_inputs, 2 * 2),
    "t5": (t5_backbone, t5_inputs, 3 * 2 * 2),
    "vit": (vit_backbone, vit_inputs, 2 * 2),
}


def lora_classifier(dense, seed=None):
    task = keras_coda.coda_wrap(
        dense, reduction_factor=2, adapter_dim=4, lora_rank=2
    )
    if seed is not None:
        for index, weight in enumerate(trained_weights(task).values()):
            rng = np.random.default_rng((seed, index))
            weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return task


@pytest.fixture
def dense():
    return keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_lora_changes_nothing_and_is_trained(family):
    make, inputs, num_layers = FAMILIES[family]
    backbone = make()
    expected = compute(backbone, inputs())
    coda = keras_coda.coda_wrap(backbone, reduction_factor=1, lora_rank=2)
    assert_close(compute(coda, inputs()), expected)
    layers = lora_layers(coda)
    assert len(layers) == num_layers
    trainable = {id(weight) for weight in coda.trainable_weights}
    for layer in layers:
        for weight in layer.weights:
            is_lora = any(weight is w for w in lora_weights(layer))
            assert (id(weight) in trainable) == is_lora


@slow_to_compile
def test_training_leaves_the_dense_model_as_it_is(dense):
    expected = compute(dense, bert_inputs())
    coda = lora_classifier(dense, seed=1)
    before = {w.path: np.array(w) for w in coda.backbone.weights}
    coda.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    coda.fit(bert_inputs(), np.ones((3, 3)), verbose=0)
    assert_close(compute(dense, bert_inputs()), expected)
    trained = trained_weights(coda)
    for weight in coda.backbone.weights:
        changed = not np.array_equal(np.array(weight), before[weight.path])
        assert not changed or weight.path in trained
    for weight in lora_weights(lora_layers(coda)[0]):
        assert not np.array_equal(np.array(weight), before[weight.path])


def test_merged_model_computes_the_same(dense):
    coda = lora_classifier(dense, seed=1)
    merged = coda.merge_lora()
    assert type(merged) is type(coda)
    assert not lora_layers(merged)
    assert_close(
        compute(merged, bert_inputs()), compute(coda, bert_inputs()), 1e-5
    )
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merged.merge_lora()
    backbone = coda.backbone.merge_lora()
    assert_close(
        compute(backbone, bert_inputs())["pooled_output"],
        compute(coda.backbone, bert_inputs())["pooled_output"],
        1e-5,
    )


def test_adapter_file_holds_lora(dense, tmp_path):
    path = tmp_path / "adapter.safetensors"
    first, second = lora_classifier(dense, 1), lora_classifier(dense, 2)
    expected = compute(first, bert_inputs())
    first.save_adapter(path)
    second.load_adapter(path)
    assert_close(compute(second, bert_inputs()), expected)
    without_lora = keras_coda.coda_wrap(dense, adapter_dim=4)
    with pytest.raises(ValueError, match="lora_rank"):
        without_lora.load_adapter(path)


@slow_to_compile
def test_saved_model_goes_on_training(dense, tmp_path):
    coda = lora_classifier(dense, seed=1)
    expected = compute(coda, bert_inputs())
    coda.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    assert_close(compute(loaded, bert_inputs()), expected, 1e-5)
    assert len(loaded.trainable_weights) == len(coda.trainable_weights)
    loaded.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
    loaded.fit(bert_inputs(), np.ones((3, 3)), verbose=0)
    _, kernel_b = lora_weights(lora_layers(loaded)[0])
    assert np.any(np.array(kernel_b))


def test_summary_counts_lora(dense):
    coda = lora_classifier(dense)
    expected = sum(
        weight.size
        for layer in lora_layers(coda)
        for weight in map(np.array, lora_weights(layer))
    )
    assert coda.trainable_summary(print_fn=str).parts["LoRA"] == expected


def test_errors(dense):
    with pytest.raises(ValueError, match="`lora_rank` must be at least 1"):
        keras_coda.coda_wrap(dense, lora_rank=0)
    coda = keras_coda.coda_wrap(dense)
    with pytest.raises(ValueError, match="lora_rank=4"):
        coda.backbone.enable_lora(4)
