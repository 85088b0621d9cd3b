import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers.partly_frozen import lora_layers
from tests.backend_helpers import BACKEND
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import assert_close
from tests.conversion.models import randomize
from tests.conversion.tiny import tiny_models

LENGTHS = (6, 12, 9)
STOP = (7, 9, 11)
MODELS = {
    "Gemma": keras_hub.models.GemmaCausalLM,
    "Gemma3": keras_hub.models.Gemma3CausalLM,
    "Llama": keras_hub.models.LlamaCausalLM,
    "Llama3": keras_hub.models.Llama3CausalLM,
    "Mistral": keras_hub.models.MistralCausalLM,
    "Qwen": keras_hub.models.QwenCausalLM,
    "Qwen3": keras_hub.models.Qwen3CausalLM,
}
# PyTorch compiles nothing.
every_model = pytest.mark.parametrize(
    "name", MODELS if BACKEND == "torch" else ["Gemma3"]
)
# It exports no other without TensorFlow's text operations.
SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]


def make(name, preprocessor=None):
    backbone = tiny_models()[f"{name}Backbone"].make()
    dense = MODELS[name](backbone=backbone, preprocessor=preprocessor)
    dense.compile(sampler="greedy")
    return dense


def convert(dense, reduction_factor=3, sampler="greedy"):
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=reduction_factor, adapter_dim=2
    )
    if reduction_factor != 1:
        for layer in coda.backbone.trained_layers():
            randomize(layer, seed=2)
    coda.compile(sampler=sampler)
    return coda


def prompts(length=24, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    is_real = np.arange(length) < np.array(lengths)[:, None]
    token_ids = rng.integers(12, 50, size=(len(lengths), 24))[:, :length]
    return {
        "token_ids": np.where(is_real, token_ids, 0).astype("int32"),
        "padding_mask": is_real,
    }


def generated(model, inputs, stop_token_ids=STOP):
    """Token ids, with 0 behind the end."""
    inputs = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    # Not `generate`, in which that of Gemma 3 fails without a preprocessor.
    outputs = model.make_generate_function()(inputs, stop_token_ids)
    token_ids, mask = (
        keras.ops.convert_to_numpy(outputs[name])
        for name in ("token_ids", "padding_mask")
    )
    return np.where(mask, token_ids, 0)


@every_model
def test_the_dense_text_at_reduction_factor_1(name):
    dense = make(name)
    coda = convert(dense, reduction_factor=1)
    expected = generated(dense, prompts())
    np.testing.assert_array_equal(generated(coda, prompts()), expected)
    assert len(np.unique(expected)) > 10


@every_model
def test_each_row_is_what_it_is_alone(name):
    coda = convert(make(name))
    together = generated(coda, prompts())
    for row in range(3):
        own = {key: values[row : row + 1] for key, values in prompts().items()}
        np.testing.assert_array_equal(generated(coda, own)[0], together[row])


@pytest.mark.parametrize("stop_token_ids", [None, STOP])
def test_a_row_of_a_beam_search_is_what_it_is_alone(stop_token_ids):
    sampler = keras_hub.samplers.BeamSampler(num_beams=3)
    coda = convert(make("Gemma"), reduction_factor=1, sampler=sampler)
    together = generated(coda, prompts(), stop_token_ids)
    for row in range(3):
        own = {key: values[row : row + 1] for key, values in prompts().items()}
        alone = generated(coda, own, stop_token_ids)[0]
        np.testing.assert_array_equal(alone, together[row])


def left_padded(outputs, prompt_length):
    """Generated rows, with prompts that end at the same position."""
    size = 24 - max(LENGTHS)
    token_ids = np.stack(
        [
            np.pad(row[: length + size], (prompt_length - length, 0))
            for row, length in zip(outputs, LENGTHS)
        ]
    )
    first = prompt_length - np.array(LENGTHS)[:, None]
    is_real = np.arange(token_ids.shape[1]) >= first
    return {
        "token_ids": token_ids.astype("int32"),
        "padding_mask": is_real.astype("int32"),
    }


@every_model
def test_training_computes_what_generation_does(name):
    coda = convert(make(name))
    outputs = (
        coda.generate(prompts(), stop_token_ids=None)["token_ids"]
        if name != "Gemma3"
        else generated(coda, prompts(), stop_token_ids=(60,))
    )
    coda.prompt_length = 14
    inputs = left_padded(outputs, 14)
    guesses = coda.predict(inputs, verbose=0).argmax(-1)
    # The logits behind the last token have nothing to be compared with.
    for row, length in enumerate(LENGTHS):
        np.testing.assert_array_equal(
            guesses[row, :-1], outputs[row, length : length + 12]
        )


@every_model
def test_no_response_token_looks_ahead(name):
    coda = convert(make(name))
    coda.prompt_length = 8
    inputs = prompts(16, lengths=(16, 16, 16))
    expected = coda.predict(inputs, verbose=0)
    changed = {key: values.copy() for key, values in inputs.items()}
    changed["token_ids"][:, 12:] = 13
    outputs = coda.predict(changed, verbose=0)
    # The last position of the prompt is the first.
    assert_close(outputs[:, :5], expected[:, :5])
    assert np.abs(outputs[:, 5:] - expected[:, 5:]).max() > 1e-3


def test_a_prompt_is_routed_and_the_rest_computed():
    coda = convert(make("Llama"), reduction_factor=[2, 4])
    coda.prompt_length = 8
    routing = keras_coda.analysis.routing(coda, prompts(12, (12, 12, 12)))
    for indices, num_routed in zip(routing.indices, (4, 2)):
        for row in indices:
            assert len(row) == num_routed + 4
            assert {0, 7, 8, 9, 10, 11} <= {*row}


def test_early_blocks_are_dense_by_default(tmp_path):
    backbone = tiny_models()["LlamaBackbone"].make(num_layers=7)
    coda = keras_coda.coda_wrap(backbone, adapter_dim=2)
    assert coda.reduction_factor == [1, 1, 4, 4, 4, 4, 4]
    coda.save(tmp_path / "coda.keras")
    coda = keras.saving.load_model(tmp_path / "coda.keras")
    assert coda.reduction_factor == [1, 1, 4, 4, 4, 4, 4]
    coda.reduction_factor = 2
    assert coda.get_config()["reduction_factor"] == 2


def test_dense_without_a_prompt():
    dense = make("Llama")
    coda = keras_coda.coda_wrap(dense, reduction_factor=4)
    assert coda.prompt_length == 0
    assert_close(
        coda.predict(prompts(), verbose=0), dense.predict(prompts(), verbose=0)
    )


def test_plain_texts_train_without_a_warning_of_gradients():
    coda = convert(make("Llama"))
    coda.compile("sgd", "sparse_categorical_crossentropy", metrics=[])
    before = trained_weights(coda)
    routers = [weight for name, weight in before.items() if "router" in name]
    assert len(routers) == 2
    kernels = [keras.ops.convert_to_numpy(weight) for weight in routers]
    coda.train_on_batch(prompts(), np.ones((3, 24)))
    for weight, kernel in zip(routers, kernels, strict=True):
        assert_close(keras.ops.convert_to_numpy(weight), kernel)


@slow_to_compile
@every_model
def test_lora_beside_adapters_is_merged(name):
    coda = keras_coda.coda_wrap(
        make(name), reduction_factor=3, adapter_dim=2, lora_rank=2
    )
    rng = np.random.default_rng(0)
    for weight in trained_weights(coda).values():
        weight.assign(rng.normal(scale=0.3, size=weight.shape))
    # Query and value of each of two blocks.
    assert len(lora_layers(coda)) == 4
    merged = coda.merge_lora()
    merged.compile(sampler="greedy")
    coda.compile(sampler="greedy")
    expected = generated(coda, prompts())
    np.testing.assert_array_equal(generated(merged, prompts()), expected)


@slow_to_compile
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
def test_the_text_of_a_quantized_model():
    dense = make("Llama")
    dense.quantize("int8")
    coda = convert(dense, reduction_factor=1)
    np.testing.assert_array_equal(
        generated(coda, prompts()), generated(dense, prompts())
    )


@pytest.mark.parametrize(
    "sampler", ["top_k", keras_hub.samplers.BeamSampler(num_beams=2)]
)
def test_samplers(sampler):
    coda = convert(make("Llama"), sampler=sampler)
    outputs = generated(coda, prompts(), None)
    assert outputs.shape == (3, 24)
    for row, prompt, length in zip(outputs, prompts()["token_ids"], LENGTHS):
        np.testing.assert_array_equal(row[:length], prompt[:length])


def preprocessor(sequence_length=16):
    words = [*"abcdefgĠ", "ab", *SPECIAL]
    tokenizer = keras_hub.models.Llama3Tokenizer(
        vocabulary={word: index for index, word in enumerate(words)},
        merges=["a b"],
    )
    return keras_hub.models.Llama3CausalLMPreprocessor(
        tokenizer, sequence_length=sequence_length
    )


TEXTS = {
    "prompts": ["ab cde fg", "a b"] * 4,
    "responses": ["dd", "fgfg"] * 4,
}


@slow_to_compile
# As for a dense language model.
@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
def test_prompts_and_responses_as_text(tmp_path):
    coda = convert(make("Llama3", preprocessor()), reduction_factor=2)
    coda.prompt_length = 10
    x, y, weights = coda.preprocess_samples(
        {key: values[:2] for key, values in TEXTS.items()}
    )
    assert x["token_ids"].shape == x["padding_mask"].shape == (2, 16)
    start, end = 9, 10
    np.testing.assert_array_equal(
        x["token_ids"][1],
        [0, 0, 0, 0, 0, 0, start, 0, 7, 1, 5, 6, 5, 6, end, 0],
    )
    np.testing.assert_array_equal(y[0], [3, 3, end, 0, 0, 0, 0])
    np.testing.assert_array_equal(weights[0], [1, 1, 1, 0, 0, 0, 0])

    coda.compile(optimizer=keras.optimizers.Adam(1e-2), sampler="greedy")
    history = coda.fit(TEXTS, batch_size=4, epochs=2, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    texts = coda.generate(["ab cde", "f"], max_length=14)
    assert [text[0] for text in texts] == ["a", "f"]
    stripped = coda.generate(["ab cde", "f"], max_length=14, strip_prompt=True)
    assert [p + text for p, text in zip(["ab cde", "f"], stripped)] == texts

    coda.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.prompt_length == 10
    loaded.compile(sampler="greedy")
    assert loaded.generate(["ab cde", "f"], max_length=14) == texts


def test_generating_with_new_routers_warns():
    coda = keras_coda.coda_wrap(make("Llama"), reduction_factor=2)
    coda.compile(sampler="greedy")
    with pytest.warns(UserWarning, match="routers of this model are as they"):
        generated(coda, prompts())


def test_bad_arguments():
    dense = make("Llama3", preprocessor())
    with pytest.raises(ValueError, match="`attention='k_to_all'` alone"):
        keras_coda.coda_wrap(dense, attention="k_to_k")
    coda = convert(dense)
    with pytest.raises(ValueError, match="prompt_length=-1"):
        coda.prompt_length = -1
    coda.prompt_length = 13
    with pytest.raises(ValueError, match="and inputs of 12 tokens"):
        coda(prompts(12))
    for prompt_length in (0, 17):
        coda.prompt_length = prompt_length
        with pytest.raises(ValueError, match="need a preprocessor"):
            coda.preprocess_samples(TEXTS)


def test_multiply_adds_of_a_prompt_alone_fall():
    coda = convert(make("Llama"), reduction_factor=4)
    coda.prompt_length = 8
    flops = keras_coda.analysis.flops(coda, sequence_length=12)
    # 2 of the 8 tokens of the prompt, and all 4 behind it.
    assert flops.coda["feedforward"] == flops.dense["feedforward"] * 6 / 12
    coda.prompt_length = 0
    flops = keras_coda.analysis.flops(coda, sequence_length=12)
    assert flops.coda == flops.parallel_adapter


@slow_to_compile
def test_calibrate_and_align():
    dense = make("Llama")
    coda = keras_coda.coda_wrap(
        dense, reduction_factor=1, adapter_dim=2, shortcut_dim=2
    )
    rng = np.random.default_rng(0)
    inputs = {
        "token_ids": rng.integers(1, 50, size=(64, 16)).astype("int32"),
        "padding_mask": np.ones((64, 16), "int32"),
    }
    inputs["padding_mask"][:, 14:] = 0
    with pytest.raises(ValueError, match="`coda.prompt_length`, or pass"):
        keras_coda.training.calibrate(coda, inputs, speedup=1.2)
    coda.prompt_length = 12
    calibration = keras_coda.training.calibrate(
        coda, inputs, speedup=1.6, batch_size=16, verbose=0
    )
    assert calibration.speedup >= 1.6
    history = keras_coda.training.align(
        coda, dense, inputs, logits_weight=1.0, epochs=5, verbose=0
    ).history
    assert history["divergence"][-1] < history["divergence"][0]
    fast, calibration = keras_coda.training.accelerate(
        dense,
        inputs,
        speedup=1.6,
        prompt_length=12,
        adapter_dim=2,
        shortcut_dim=2,
        verbose=0,
    )
    assert type(fast) is type(coda)
    assert fast.prompt_length == 12
    assert calibration.reduction_factor == fast.reduction_factor


def sequence_classifier(backbone):
    """Reads the last real token."""
    states = backbone(backbone.input)
    is_real = keras.ops.cast(backbone.input["padding_mask"], "float32")
    after = keras.ops.pad(is_real, [[0, 0], [0, 1]])[:, 1:]
    is_last = keras.ops.expand_dims(is_real * (1 - after), -1)
    pooled = keras.ops.sum(states * is_last, axis=1)
    return keras.Model(backbone.input, keras.layers.Dense(3)(pooled))


@slow_to_compile
def test_sequence_heads():
    dense = sequence_classifier(tiny_models()["MistralBackbone"].make())
    coda = keras_coda.coda_wrap(dense, reduction_factor=1, adapter_dim=1)
    inputs = prompts(length=20, lengths=[20, 12, 9] * 20)
    expected = dense.predict(inputs, verbose=0)
    assert_close(coda.predict(inputs, verbose=0), expected)
    calibration = keras_coda.training.calibrate(
        coda, inputs, speedup=1.5, verbose=0
    )
    # Of the last block, nothing but the last token is read.
    assert calibration.reduction_factor[1] >= calibration.reduction_factor[0]
    padded = prompts(length=24, lengths=[20, 12, 9] * 20)
    assert_close(
        coda.predict(padded, verbose=0), coda.predict(inputs, verbose=0)
    )


@slow_to_compile
def test_embedding_gemma():
    dense = tiny_models()["Gemma3Backbone"].make(
        use_bidirectional_attention=True,
        is_embedding_model=True,
        pooling_intermediate_dim=8,
        embedding_dim=4,
    )
    coda = keras_coda.coda_wrap(dense, reduction_factor=1)
    inputs = prompts(20)
    real = inputs["padding_mask"].astype(bool)
    expected, outputs = (
        model.predict(inputs, verbose=0) for model in (dense, coda)
    )
    assert_close(outputs["pooled_output"], expected["pooled_output"])
    assert_close(
        outputs["sequence_output"][real], expected["sequence_output"][real]
    )


@slow_to_compile
def test_images_are_refused():
    vision_encoder = keras_hub.models.Gemma3VisionEncoder(
        image_size=16,
        patch_size=4,
        pool_size=2,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        intermediate_dim=16,
        output_dim=16,
    )
    dense = tiny_models()["Gemma3Backbone"].make(vision_encoder=vision_encoder)
    with pytest.raises(ValueError, match="`vision_encoder=None`"):
        keras_coda.coda_wrap(dense)


def test_vllm_is_refused():
    context = pytest.importorskip("keras_hub.src.vllm.context")
    coda = convert(make("Llama"))
    with context.vllm_context_scope(paged_attention_func=print):
        with pytest.raises(ValueError, match="Serve the dense model with vLLM"):
            coda(prompts())
