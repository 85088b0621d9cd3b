"""Quantized before conversion, and after it: frozen weights alone."""

import gc
import warnings

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.training.cost import timed_models
from tests.backend_helpers import BACKEND
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import compute
from tests.conversion.models import predict
from tests.conversion.models import randomize
from tests.conversion.tiny import tiny_models

# As for a dense task of KerasHub that was trained.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Skipping variable loading for optimizer"
)

LABELS = np.array([0, 1, 2])

# One of each way to attend, and of what KerasHub's files of quantized models
# lose: dtypes in Moonshine, a layer without a name in PARSeq.
NAMES = [
    "AlbertBackbone",
    "BertBackbone",
    "CLIPBackbone",
    "DebertaV3Backbone",
    "EdRecBackbone",
    "GemmaBackbone",
    "LlamaBackbone",
    "MoonshineBackbone",
    "PARSeqBackbone",
    "T5Backbone",
    "T5GemmaBackbone",
    "ViTBackbone",
]
if BACKEND != "torch":
    # PyTorch compiles nothing, and has all of them.
    NAMES = [{"jax": "LlamaBackbone", "tensorflow": "T5Backbone"}[BACKEND]]
several_blocks = pytest.mark.parametrize(
    "tiny", [tiny_models()[name] for name in NAMES], ids=NAMES
)


def quantized(model, mode="int8", **kwargs):
    # Keras collects garbage for each layer.
    gc.freeze()
    with warnings.catch_warnings():
        # Of each dropout and normalisation, and embeddings in float8.
        warnings.filterwarnings("ignore", category=UserWarning)
        model.quantize(mode, **kwargs)
    gc.unfreeze()
    return model


def weights_only():
    """Int8 without rounded inputs, which no order of sums can change."""
    return keras.quantizers.Int8QuantizationConfig(activation_quantizer=None)


def modes(model):
    """How many layers are quantized, by mode."""
    found = [
        layer.quantization_mode
        for layer in model._flatten_layers()
        if layer.quantization_mode is not None
    ]
    return {mode: found.count(mode) for mode in found}


def paths(weights):
    return [weight.path for weight in weights]


def classifier(backbone=None, seed=None, **settings):
    """A converted classifier; with a seed all that is trained matters."""
    task = keras_coda.coda_wrap(
        keras_hub.models.BertTextClassifier(
            backbone or bert_backbone(), num_classes=3
        ),
        **{"adapter_dim": 4, "reduction_factor": 2, **settings},
    )
    if seed is not None:
        for layer in [*task.backbone.trained_layers(), task.output_dense]:
            randomize(layer, seed)
    return task


def saved_and_loaded(model, folder):
    model.save(folder / "model.keras")
    return keras.models.load_model(folder / "model.keras", compile=False)


@several_blocks
def test_the_dense_model_before_and_after(tiny, tmp_path):
    dense, inputs = tiny.make(), tiny.inputs()
    in_float = compute(dense, inputs)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1, adapter_dim=2)
    trained = paths(coda.trainable_weights)
    coda.quantize(config=weights_only())
    # Shared, so that the dense model is quantized with it.
    expected = compute(dense, inputs)
    assert_close(compute(coda, inputs), expected, atol=tiny.exact)
    differences = keras.tree.map_structure(
        lambda a, b: float(np.abs(np.subtract(a, b, dtype="float32")).max()),
        in_float,
        expected,
    )
    assert max(keras.tree.flatten(differences)) > 1e-3
    assert paths(coda.trainable_weights) == trained

    other = quantized(tiny.make(), None, config=weights_only())
    assert_close(compute(other, inputs), expected, atol=0)
    converted = keras_coda.coda_wrap(other, reduction_factor=1, adapter_dim=2)
    for model in (coda, converted):
        loaded = saved_and_loaded(model, tmp_path)
        assert modes(loaded) == modes(model)
        assert paths(loaded.trainable_weights) == trained
        assert_close(compute(loaded, inputs), expected, atol=tiny.exact)


@pytest.mark.parametrize(
    "mode", ["int8", pytest.param("int4", marks=same_on_every_backend)]
)
def test_trained_before_and_after(mode, tmp_path):
    task = classifier(bert_backbone(num_layers=1))
    task.fit(bert_inputs(), LABELS, verbose=0)
    in_float = predict(task, bert_inputs())
    trained = paths(task.trainable_weights)
    task.quantize(mode)
    # Four of self-attention, two of the feedforward network, embeddings of
    # tokens and segments, and what is pooled.
    assert modes(task) == {mode: 4 + 2 + 2 + 1}
    assert paths(task.trainable_weights) == trained
    assert {weight.dtype for weight in task.trainable_weights} == {"float32"}
    difference = np.abs(predict(task, bert_inputs()) - in_float).max()
    assert 0 < difference < 0.3

    before = task.get_weights()
    task.fit(bert_inputs(), LABELS, epochs=2, verbose=0)
    changed = {
        weight.path
        for weight, old, new in zip(task.weights, before, task.get_weights())
        if not np.array_equal(old, new)
    }
    # Of the block CLS alone is read, which is always routed.
    assert changed == {*trained} - {"transformer_layer_0/router/kernel"}
    if BACKEND == "torch":
        # Compiling it takes ten seconds.
        keras_coda.training.calibrate(task, bert_inputs(), verbose=0)

    expected = predict(task, bert_inputs())
    loaded = saved_and_loaded(task, tmp_path)
    assert type(loaded) is type(task)
    assert modes(loaded) == modes(task)
    assert paths(loaded.trainable_weights) == trained
    assert_close(predict(loaded, bert_inputs()), expected)


@slow_to_compile
def test_presets(tmp_path):
    task = classifier(seed=1)
    task.quantize("int4")
    task.save_to_preset(tmp_path / "preset")
    preset = type(task).from_preset(str(tmp_path / "preset"))
    assert modes(preset) == modes(task)
    assert_close(compute(preset, bert_inputs()), compute(task, bert_inputs()))
    halves = keras_hub.models.Backbone.from_preset(
        str(tmp_path / "preset"), dtype="bfloat16"
    )
    assert modes(halves) == modes(task)
    assert halves.compute_dtype == "bfloat16"


@same_on_every_backend
def test_mixed_precision(tmp_path):
    task = classifier(bert_backbone(dtype="mixed_bfloat16"), seed=1)
    task.quantize("int8")
    task.fit(bert_inputs(), LABELS, verbose=0)
    loaded = saved_and_loaded(task, tmp_path)
    assert loaded.backbone.compute_dtype == "bfloat16"
    assert_close(
        np.asarray(compute(loaded, bert_inputs()), "float32"),
        np.asarray(compute(task, bert_inputs()), "float32"),
    )


def test_adapters_move_between_ways_to_quantize(tmp_path):
    path = tmp_path / "adapter.safetensors"
    tasks = [classifier(seed=seed) for seed in range(3)]
    tasks[1].quantize("int8")
    tasks[2].quantize("int4")
    # Of float8 only some weights are others.
    tasks.append(classifier(quantized(bert_backbone(), "float8"), seed=3))
    for task in tasks:
        task.save_adapter(path)
        head = task.output_dense.get_weights()
        for other in tasks:
            randomize(other.output_dense, seed=9)
            other.load_adapter(path)
            assert_close(other.output_dense.get_weights(), head, atol=0)
    # The same bits of other weights.
    for mode in ("int8", "float8"):
        other = classifier(quantized(bert_backbone(seed=5), mode))
        with pytest.raises(ValueError, match="other pretrained weights"):
            other.load_adapter(path)
    llama = tiny_models()["LlamaBackbone"]
    for seed in range(2):
        coda = keras_coda.coda_wrap(llama.make(seed=seed))
        coda.quantize("int8")
        if seed == 0:
            coda.save_adapter(path)
    with pytest.raises(ValueError, match="_scale' differs"):
        coda.load_adapter(path)


@slow_to_compile
def test_float8_before_conversion(tmp_path):
    dense = quantized(bert_backbone(num_layers=1), "float8")
    expected = compute(dense, bert_inputs())
    fresh = keras_coda.coda_wrap(dense, reduction_factor=1)
    # Rounded to 4 bits, sums in another order may differ by one of them.
    assert_close(compute(fresh, bert_inputs()), expected, atol=0.05)
    task = classifier(dense, seed=1)
    trained = paths(task.trainable_weights)
    assert not any("scale" in path or "amax" in path for path in trained)
    before = dense.get_weights()
    task.fit(bert_inputs(), LABELS, verbose=0)
    assert_close(dense.get_weights(), before, atol=0)
    loaded = saved_and_loaded(task, tmp_path)
    assert modes(loaded) == modes(task)
    assert paths(loaded.trainable_weights) == trained
    assert_close(compute(loaded, bert_inputs()), compute(task, bert_inputs()))


@slow_to_compile
def test_memory():
    task = classifier(bert_backbone(hidden_dim=128, intermediate_dim=512))
    frozen = {id(w) for w in task.weights} - {
        id(w) for w in trained_weights(task).values()
    }
    size = bytes_of([w for w in task.weights if id(w) in frozen])
    rest = bytes_of(task.weights) - size
    for mode, share in (("int8", 0.25), ("int4", 0.125)):
        copy = classifier(bert_backbone(hidden_dim=128, intermediate_dim=512))
        copy.quantize(mode)
        left = bytes_of(copy.weights) - rest
        # And scales, biases, and embeddings of positions.
        assert share * size < left < (share + 0.08) * size
        if BACKEND == "torch":
            for model in (copy, copy.backbone):
                parameters = {id(x): x for x in model.parameters()}.values()
                held = sum(x.nbytes for x in parameters)
                assert held == bytes_of(model.variables)


def bytes_of(weights):
    return sum(weight.numpy().nbytes for weight in weights)


@same_on_every_backend
def test_lora_beside_it(tmp_path):
    expected = None
    for before in (True, False):
        backbone = bert_backbone()
        if before:
            quantized(backbone, None, config=weights_only())
        task = classifier(backbone, lora_rank=2, reduction_factor=1)
        if not before:
            task.quantize(config=weights_only())
        assert len(lora_layers(task)) == 4
        for index, weight in enumerate(trained_weights(task).values()):
            rng = np.random.default_rng(index)
            weight.assign(rng.normal(scale=0.3, size=weight.shape))
        outputs = compute(task, bert_inputs())
        if expected is not None:
            assert_close(outputs, expected)
        expected = outputs
    # Merged into 8 bits again.
    merged = task.merge_lora()
    assert modes(merged) == modes(task)
    assert_close(compute(merged, bert_inputs()), outputs, atol=0.3)
    assert_close(
        compute(saved_and_loaded(task, tmp_path), bert_inputs()),
        compute(merged, bert_inputs()),
    )


@same_on_every_backend
def test_what_is_timed_is_quantized_alike():
    coda = keras_coda.coda_wrap(bert_backbone())
    coda.quantize("int8")
    for model in timed_models(coda):
        assert modes(model) == modes(coda)


@same_on_every_backend
def test_a_model_of_ones_own(tmp_path):
    """Keras quantizes all but what is trained, the head too."""
    backbone = bert_backbone()
    states = backbone(backbone.input)["sequence_output"]
    tagger = keras.Model(backbone.input, keras.layers.Dense(5)(states))
    coda = keras_coda.coda_wrap(tagger, reduction_factor=2)
    inside = next(x for x in coda.layers if hasattr(x, "reduction_factor"))
    for layer in inside.trained_layers():
        randomize(layer, seed=1)
    trained = paths(inside.trainable_weights)
    quantized(coda)
    assert paths(inside.trainable_weights) == trained
    loaded = saved_and_loaded(coda, tmp_path)
    assert_close(compute(loaded, bert_inputs()), compute(coda, bert_inputs()))


@same_on_every_backend
def test_a_part_of_the_layers(tmp_path):
    coda = keras_coda.coda_wrap(bert_backbone())
    coda.quantize("int8", filters=["query", "^key$"])
    assert modes(coda) == {"int8": 4}
    coda.quantize("int4", filters=lambda layer: "dense" in layer.name)
    assert modes(coda) == {"int8": 4, "int4": 5}
    loaded = saved_and_loaded(coda, tmp_path)
    assert modes(loaded) == modes(coda)
    assert_close(compute(loaded, bert_inputs()), compute(coda, bert_inputs()))
    with pytest.raises(ValueError, match="`filters` leaves them out.*'quer'"):
        coda.quantize("int8", filters="quer")


@same_on_every_backend
def test_what_is_refused():
    coda = keras_coda.coda_wrap(bert_backbone())
    with pytest.raises(ValueError, match="before it is converted.*'float8'"):
        coda.quantize("float8")
    dense = keras_hub.models.BertTextClassifier(bert_backbone(), num_classes=3)
    quantized(dense)
    with pytest.raises(ValueError, match="backbone alone.*'logits'"):
        keras_coda.coda_wrap(dense)
