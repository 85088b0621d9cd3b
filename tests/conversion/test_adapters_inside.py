"""Adapters inside the blocks: those in sequence, and prefixes.

`test_families.py` has what every family shows of those in sequence.
"""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion import registry
from keras_coda.conversion.trained_weights import trained_weights
from tests import reference
from tests.backend_helpers import BACKEND
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.backend_helpers import to_numpy
from tests.conversion.models import assert_changed_and_blind_to_padding
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import compute
from tests.conversion.models import predict
from tests.conversion.models import t5_backbone
from tests.conversion.tiny import tiny_models
from tests.layer_checks import randomize_weights

LABELS = np.array([0, 1, 2])
# One of each way to attend, and nested backbones.
WITH_PREFIX = [
    "CLIPBackbone",
    "CLIPTextEncoder",
    "DINOV3Backbone",
    "ESMBackbone",
    "Gemma3Backbone",
    "Qwen3Backbone",
    "RoformerV2Backbone",
]
if BACKEND != "torch":
    # PyTorch compiles nothing.
    WITH_PREFIX = ["Gemma3Backbone"]
each_adapter = pytest.mark.parametrize("adapter", ["sequential", "prefix"])


def convert(dense, adapter, seed=1, **settings):
    """A converted model, whose trained weights `seed` determines."""
    settings = {"adapter_dim": 4, "prefix_length": 3, **settings}
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=1, adapter=adapter, **settings
    )
    if seed is not None:
        for index, weight in enumerate(trained_weights(coda).values()):
            rng = np.random.default_rng((seed, index))
            weight.assign(rng.normal(scale=0.3, size=weight.shape))
    return coda


def classifier(**kwargs):
    return keras_hub.models.BertTextClassifier(
        bert_backbone(**kwargs), num_classes=3
    )


@each_adapter
@pytest.mark.parametrize("normalize_first", [True, False])
def test_against_numpy(adapter, normalize_first):
    dense = keras_hub.layers.TransformerEncoder(
        16, num_heads=2, normalize_first=normalize_first
    )
    dense.build((None, None, 8))
    layer = keras_coda.layers.ConditionalTransformerBlock(
        keras_coda.conversion.EncoderBlock(dense),
        reduction_factor=1,
        adapter=adapter,
        adapter_dim=3,
        adapter_scale=0.5,
        prefix_length=3,
    )
    layer.build((None, None, 8))
    randomize_weights(layer)
    inputs = np.random.default_rng(0).normal(size=(2, 5, 8)).astype("float32")
    padding_mask = np.arange(5) < np.array([[5], [3]])
    np.testing.assert_allclose(
        to_numpy(layer(inputs, padding_mask=padding_mask)),
        reference.adapted_encoder_layer(layer, inputs, padding_mask),
        atol=1e-5,
    )


@pytest.mark.parametrize("name", WITH_PREFIX)
def test_a_prefix(name):
    tiny = tiny_models()[name]
    dense, inputs = tiny.make(), tiny.inputs()
    expected = compute(dense, inputs)
    coda = convert(dense, "prefix")
    assert_changed_and_blind_to_padding(tiny, coda, expected)


@same_on_every_backend
def test_which_families_take_a_prefix():
    without = {
        name
        for name in tiny_models()
        if not registry.backbone_classes[
            getattr(keras_hub.models, name)
        ].family.takes_prefix
    }
    assert without == {
        "BartBackbone",
        "DebertaV3Backbone",
        "EdRecBackbone",
        "MoonshineBackbone",
        "T5Backbone",
        "T5Gemma2Backbone",
        "T5GemmaBackbone",
        "VideoPrismBackbone",
        "WhisperBackbone",
    } & set(tiny_models())
    dense = t5_backbone()
    with pytest.raises(ValueError, match="T5Backbone takes no prefix"):
        keras_coda.coda_wrap(dense, reduction_factor=1, adapter="prefix")
    assert len(dense.trainable_weights) == len(dense.weights)


@slow_to_compile
@each_adapter
def test_only_adapters_norms_and_head_are_trained(adapter):
    dense = classifier(dropout=0.0)
    expected = compute(dense, bert_inputs())
    coda = convert(dense, adapter, seed=None)
    sizes = {"sequential": 2 * (2 * 4 * 16 + 4 + 16), "prefix": 2 * 3 * 16}
    # 2 blocks of hidden_dim 16, with norms, and those of the embeddings.
    assert coda.trainable_summary(print_fn=str).parts == {
        "adapters": 2 * sizes[adapter],
        "routers": 0,
        "layer norms": 5 * 2 * 16,
        "LoRA": 0,
        "task head": 16 * 3 + 3,
    }
    before = coda.get_weights()
    coda.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = coda.fit(bert_inputs(), LABELS, epochs=8, verbose=0)
    losses = history.history["loss"]
    assert losses[-1] < 0.9 * losses[0]
    trained = {id(weight) for weight in trained_weights(coda).values()}
    for weight, old, new in zip(coda.weights, before, coda.get_weights()):
        changed = not np.array_equal(old, new)
        assert changed == (id(weight) in trained), weight.path
    assert_close(compute(dense, bert_inputs()), expected, atol=0)


@pytest.mark.parametrize(
    "name, adapter",
    [
        ("BertBackbone", "sequential"),
        ("BertBackbone", "prefix"),
        pytest.param("T5Backbone", "sequential", marks=same_on_every_backend),
        pytest.param("CLIPBackbone", "prefix", marks=same_on_every_backend),
    ],
)
def test_files(name, adapter, tmp_path):
    tiny = tiny_models()[name]
    coda = convert(tiny.make(), adapter)
    expected = compute(coda, tiny.inputs())
    coda.save(tmp_path / "model.keras")
    coda.save_adapter(tmp_path / "adapter.safetensors")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    adapted = convert(tiny.make(), adapter, seed=2)
    adapted.load_adapter(tmp_path / "adapter.safetensors")
    trained = {w.path for w in coda.trainable_weights}
    for copy in (loaded, adapted):
        assert copy.adapter == adapter
        assert {w.path for w in copy.trainable_weights} == trained
        assert_close(compute(copy, tiny.inputs()), expected)


@same_on_every_backend
def test_a_file_of_other_adapters_is_refused(tmp_path):
    kinds = ("sequential", "parallel")
    models = {kind: convert(bert_backbone(), kind) for kind in kinds}
    for saved, other in (kinds, kinds[::-1]):
        path = tmp_path / saved
        models[saved].save_adapter(path)
        with pytest.raises(
            ValueError, match=f"adapter='{saved}'.*adapter='{other}'"
        ):
            models[other].load_adapter(path)


@same_on_every_backend
@each_adapter
def test_mixed_precision_and_quantized(adapter):
    coda = convert(bert_backbone(dtype="mixed_bfloat16"), adapter)
    outputs = compute(coda, bert_inputs())["sequence_output"]
    assert np.isfinite(outputs.astype("float32")).all()
    coda = convert(bert_backbone(), adapter)
    expected = compute(coda, bert_inputs())["sequence_output"]
    coda.quantize("int8")
    outputs = compute(coda, bert_inputs())["sequence_output"]
    assert_close(outputs, expected, atol=0.3)
    assert {w.dtype for w in coda.trainable_weights} == {"float32"}


@same_on_every_backend
@pytest.mark.parametrize(
    "settings, match",
    [
        (
            {},
            "`reduction_factor` must be 1 .*Received: reduction_factor='auto'",
        ),
        ({"reduction_factor": [1, 2]}, r"reduction_factor=\[1, 2\]"),
        (
            {"reduction_factor": 1, "shortcut_dim": 2},
            "`shortcut_dim` must be None .* shortcut_dim=2",
        ),
        (
            {"reduction_factor": 1, "router": "first_k"},
            "`router` must be 'exact' .* router='first_k'",
        ),
    ],
)
@each_adapter
def test_routing_is_refused(adapter, settings, match):
    with pytest.raises(ValueError, match=match):
        keras_coda.coda_wrap(bert_backbone(), adapter=adapter, **settings)


@same_on_every_backend
def test_routing_is_refused_later():
    coda = convert(bert_backbone(), "sequential")
    for factor in (2, [1, 2], float("inf")):
        with pytest.raises(ValueError, match="must be 1 with"):
            coda.reduction_factor = factor
        with pytest.raises(ValueError, match="must be 1 with"):
            keras_coda.analysis.flops(coda, 12, reduction_factor=factor)
    assert coda.reduction_factor == 1
    with pytest.raises(ValueError, match="must be 1 with"):
        keras_coda.training.calibrate(coda, bert_inputs(), speedup=2, verbose=0)


@same_on_every_backend
def test_blocks_of_other_kinds_are_refused():
    block = keras_coda.layers.TransformerBlock(2, intermediate_dim=16)
    with pytest.raises(ValueError, match="TransformerBlock takes no adapters"):
        keras_coda.layers.ConditionalTransformerBlock(
            block, reduction_factor=1, adapter="sequential"
        )


@pytest.mark.parametrize(
    "adapter, per_block",
    [
        # 12 tokens, adapter_dim 4, hidden_dim 16, prefix_length 3.
        ("sequential", 2 * 12 * 2 * 4 * 16),
        ("prefix", 12 * 3 * 2 * 16),
    ],
)
@same_on_every_backend
def test_flops(adapter, per_block):
    counted = keras_coda.analysis.flops(convert(bert_backbone(), adapter), 12)
    parallel = keras_coda.analysis.flops(
        convert(bert_backbone(), "parallel"), 12
    )
    assert counted.coda["adapter"] == 2 * per_block
    assert counted.coda["router"] == 0
    assert counted.dense == parallel.dense
    assert counted.ratio == 1


@same_on_every_backend
@each_adapter
def test_generated_text_is_what_was_trained(adapter):
    backbone = tiny_models()["LlamaBackbone"].make()
    dense = keras_hub.models.LlamaCausalLM(backbone, preprocessor=None)
    coda = convert(dense, adapter)
    coda.compile(sampler="greedy")
    token_ids = np.random.default_rng(0).integers(12, 50, size=(2, 16))
    padding_mask = np.arange(16) < np.array([[5], [8]])
    inputs = {
        "token_ids": np.where(padding_mask, token_ids, 0).astype("int32"),
        "padding_mask": padding_mask,
    }
    outputs = to_numpy(
        coda.generate(inputs, stop_token_ids=None)["token_ids"]
    ).astype("int32")
    guesses = predict(
        coda, {"token_ids": outputs, "padding_mask": np.ones_like(outputs)}
    ).argmax(-1)
    for row, length in enumerate((5, 8)):
        np.testing.assert_array_equal(
            guesses[row, length - 1 : -1], outputs[row, length:]
        )
