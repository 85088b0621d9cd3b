"""What backbones of two towers have to show beside `test_families`."""

import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import compute
from tests.conversion.models import randomize
from tests.conversion.tiny import tiny_models
from tests.conversion.towers import LENGTH
from tests.conversion.towers import TEXT
from tests.conversion.towers import VISION
from tests.conversion.towers import towers

every_pair = pytest.mark.parametrize("prefix", ["CLIP", "MetaCLIP2", "SigLIP"])
POOLED = {
    "CLIP": [LENGTH - 1, 0, 5],
    "MetaCLIP2": [LENGTH - 1, 0, 5],
    "SigLIP": [LENGTH - 1] * 3,
}
FACTORS = [1, 2, 2, 3, 4]


def nameless(prefix, **kwargs):
    """Towers of two and three layers that nobody gave a name."""
    head = {} if prefix == "SigLIP" else {"projection_dim": 8}
    config = towers(
        prefix,
        {**VISION, "name": None},
        {**TEXT, "name": None, "num_layers": 3},
        **head,
        **kwargs,
    )
    return randomize(getattr(keras_hub.models, f"{prefix}Backbone")(**config))


def inputs_of(prefix):
    return tiny_models()[f"{prefix}Backbone"].inputs()


def assert_factors(coda):
    assert coda.reduction_factor == FACTORS
    assert coda.vision_encoder.reduction_factor == FACTORS[:2]
    assert coda.text_encoder.reduction_factor == FACTORS[2:]


@every_pair
def test_towers_are_converted(prefix):
    dense = nameless(prefix)
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    for name in ("vision_encoder", "text_encoder"):
        tower = getattr(coda, name)
        assert isinstance(tower, keras_coda.CodaBackbone)
        assert isinstance(tower, type(getattr(dense, name)))
    assert list(coda.named_blocks) == [
        *(f"vision_encoder/encoder_block_{i}" for i in range(2)),
        *(f"text_encoder/encoder_block_{i}" for i in range(3)),
    ]
    inputs = inputs_of(prefix)
    for embed, key in (
        ("get_vision_embeddings", "images"),
        ("get_text_embeddings", "token_ids"),
    ):
        expected = getattr(dense, embed)(inputs[key])
        assert_close(getattr(coda, embed)(inputs[key]), expected)


@same_on_every_backend
@every_pair
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_files_do_not_depend_on_names(prefix, lora_rank, tmp_path):
    coda = keras_coda.coda_wrap(
        nameless(prefix),
        reduction_factor=FACTORS,
        adapter_dim=4,
        lora_rank=lora_rank,
    )
    rng = np.random.default_rng(3)
    for weight in coda.trainable_weights:
        weight.assign(weight + rng.normal(scale=0.1, size=weight.shape))
    expected = compute(coda, inputs_of(prefix))
    coda.save_adapter(tmp_path / "adapter")
    coda.save_to_preset(tmp_path / "preset")
    # KerasHub names the layers of what it loads differently.
    loaded = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
    adapted = keras_coda.coda_wrap(
        nameless(prefix), adapter_dim=4, lora_rank=lora_rank
    )
    adapted.load_adapter(tmp_path / "adapter")
    for copy in (loaded, adapted):
        assert_factors(copy)
        assert list(copy.named_blocks) == list(coda.named_blocks)
        assert_close(compute(copy, inputs_of(prefix)), expected, atol=1e-4)
    if lora_rank is None:
        # With LoRA it would not fit: Keras merges it into the files it saves.
        loaded.load_adapter(tmp_path / "adapter")


@every_pair
def test_files_of_a_tower_do_not_depend_on_names(prefix, tmp_path):
    text, other = (
        keras_coda.coda_wrap(nameless(prefix).text_encoder, adapter_dim=4)
        for _ in range(2)
    )
    randomize(text.conditional_blocks[1].adapter)
    text.save_adapter(tmp_path / "adapter")
    other.load_adapter(tmp_path / "adapter")
    inputs = {"token_ids": inputs_of(prefix)["token_ids"]}
    assert_close(compute(other, inputs), compute(text, inputs))


@every_pair
def test_dtype_of_both_towers(prefix, tmp_path):
    coda = keras_coda.coda_wrap(nameless(prefix), reduction_factor=FACTORS)
    coda.save_to_preset(tmp_path / "preset")
    coda.save_adapter(tmp_path / "adapter")
    loaded = keras_hub.models.Backbone.from_preset(
        str(tmp_path / "preset"), dtype="bfloat16"
    )
    for block in loaded.conditional_blocks:
        assert block.compute_dtype == "bfloat16"
        assert block.block.compute_dtype == "bfloat16"
    loaded.load_adapter(tmp_path / "adapter")
    assert_factors(loaded)


@every_pair
@pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])
@pytest.mark.parametrize("reduction_factor", [3, 100])
def test_what_is_pooled_is_routed(prefix, attention, reduction_factor):
    coda = keras_coda.coda_wrap(
        nameless(prefix), reduction_factor=reduction_factor, attention=attention
    )
    routed = keras_coda.analysis.routing(coda, inputs_of(prefix))
    assert routed.names == list(coda.named_blocks)
    for name, indices in zip(routed.names, routed.indices):
        pooled = [0] * 3
        if name.startswith("text_encoder"):
            pooled = POOLED[prefix]
        elif prefix == "SigLIP":
            continue
        for row, position in zip(indices, pooled):
            assert position in row
    for outputs in compute(coda, inputs_of(prefix)).values():
        assert np.all(np.isfinite(outputs))


@pytest.mark.parametrize("prefix", ["CLIP", "MetaCLIP2"])
@pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])
def test_texts_are_read_forwards(prefix, attention):
    """No token changes what comes before it, if the same ones are routed."""
    tiny = tiny_models()[f"{prefix}TextEncoder"]
    coda = keras_coda.coda_wrap(
        tiny.make(),
        reduction_factor=2,
        router="first_k",
        num_prefix_tokens=3,
        attention=attention,
    )
    inputs = tiny.inputs()
    expected = compute(coda, inputs)
    inputs["token_ids"][:, 4:] = 7
    outputs = compute(coda, inputs)
    assert_close(outputs[:, :4], expected[:, :4])
    assert np.abs(outputs[:, 4:] - expected[:, 4:]).max() > 1e-2


@every_pair
def test_only_towers_are_trained(prefix):
    coda = keras_coda.coda_wrap(nameless(prefix))
    summary = coda.trainable_summary(print_fn=str)
    sizes = [np.prod(weight.shape) for weight in coda.trainable_weights]
    assert summary.trainable == sum(sizes)
    assert summary.parts["task head"] == 0
    for layer in coda.layers:
        if "head" in layer.name or "projection" in layer.name:
            assert layer.trainable_weights == []


@slow_to_compile
def test_siglip_trains_itself():
    dense, inputs = nameless("SigLIP"), inputs_of("SigLIP")
    expected = compute(dense, inputs)
    coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    coda.compile()
    losses = coda.fit(inputs, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert_close(compute(dense, inputs), expected)


@every_pair
def test_flops_are_those_of_the_towers(prefix):
    coda = keras_coda.coda_wrap(nameless(prefix), reduction_factor=FACTORS)
    both = keras_coda.analysis.flops(coda, LENGTH)
    vision = keras_coda.analysis.flops(coda.vision_encoder)
    text = keras_coda.analysis.flops(coda.text_encoder, LENGTH)
    assert f"17 and {LENGTH} tokens" in both.title
    for part in ("projections", "attention", "feedforward", "router"):
        assert both.coda[part] == vision.coda[part] + text.coda[part]
    with pytest.raises(ValueError, match="`sequence_length` must be given"):
        keras_coda.analysis.flops(coda)
