import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_coda
from keras_coda.speech import WhisperTranscriber
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion import models

END, START = 30, 31
SPECIAL_TOKENS = {
    "<|endoftext|>": END,
    "<|startoftranscript|>": START,
    "<|translate|>": 32,
    "<|transcribe|>": 33,
    "<|notimestamps|>": 34,
}
VOCABULARY = {**{chr(97 + i): i for i in range(26)}, "ab": 26}
MAX_LENGTH = 8


def tokenizer(**kwargs):
    return keras_hub.models.WhisperTokenizer(
        VOCABULARY, ["a b"], SPECIAL_TOKENS, **kwargs
    )


def whisper(seed=28):
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=40,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_encoder_sequence_length=16,
        max_decoder_sequence_length=12,
    )
    generator = np.random.default_rng(seed)
    for weight in sorted(backbone.weights, key=lambda weight: weight.path):
        weight.assign(generator.normal(size=weight.shape) * 0.6)
    return backbone


def features(num_frames=16):
    generator = np.random.default_rng(0)
    return generator.normal(size=(4, num_frames, 80)).astype("float32")


def greedy(backbone, features):
    """Greedy transcripts without a cache, all tokens anew for each."""
    token_ids = np.full((4, 2 + MAX_LENGTH), END)
    token_ids[:, :2] = START, SPECIAL_TOKENS["<|notimestamps|>"]
    for index in range(2, 2 + MAX_LENGTH):
        # No token sees those behind it.
        outputs = models.predict(
            backbone,
            {
                "encoder_features": features,
                "decoder_token_ids": token_ids,
                "decoder_padding_mask": np.ones_like(token_ids),
            },
        )["decoder_sequence_output"]
        logits = ops.convert_to_numpy(
            backbone.token_embedding(outputs[:, index - 1], reverse=True)
        )
        next_ids = logits[:, : END + 1].argmax(axis=-1)
        next_ids[(token_ids[:, :index] == END).any(axis=1)] = END
        token_ids[:, index] = next_ids
    return token_ids[:, 2:]


@pytest.mark.parametrize(
    "is_converted", [pytest.param(False, marks=slow_to_compile), True]
)
def test_writes_what_a_decoder_without_a_cache_does(is_converted):
    backbone = whisper()
    if is_converted:
        backbone = keras_coda.coda_wrap(
            backbone, reduction_factor=2, adapter_dim=2
        )
        generator = np.random.default_rng(0)
        for layer in backbone.trained_layers():
            for weight in layer.weights:
                change = 0.1 * generator.normal(size=weight.shape)
                weight.assign(ops.convert_to_numpy(weight) + change)
    transcriber = WhisperTranscriber(
        backbone, tokenizer(), max_length=MAX_LENGTH
    )
    token_ids = transcriber.predict(features(), batch_size=3, verbose=0)
    expected = greedy(backbone, features())
    np.testing.assert_array_equal(token_ids, expected)
    if is_converted:
        # What was compiled for another reduction factor is not used.
        backbone.reduction_factor = 1
        token_ids = transcriber.predict(features(), batch_size=3, verbose=0)
        np.testing.assert_array_equal(token_ids, greedy(backbone, features()))
        assert np.any(token_ids != expected)
    else:
        assert (expected != END).sum(axis=1).tolist() == [8, 8, 2, 2]
        texts = ["zbkbkkkk", "qqjkkkkq", "zb", "zj"]
        assert transcriber.detokenize(token_ids) == texts


@same_on_every_backend
def test_its_own_transcripts_are_what_it_predicts():
    transcriber = WhisperTranscriber(
        whisper(), tokenizer(), max_length=MAX_LENGTH
    )
    inputs = transcriber.teacher_forced(features(), batch_size=3)
    tokens, mask = inputs["decoder_token_ids"], inputs["decoder_padding_mask"]
    assert mask.sum(axis=1).tolist() == [10, 10, 4, 4]
    logits = ops.convert_to_numpy(transcriber.logits(inputs))
    assert not logits[mask == 0].any()
    guesses = logits[:, 1:-1, : END + 1].argmax(axis=-1)
    is_given = mask[:, 2:] == 1
    np.testing.assert_array_equal(guesses[is_given], tokens[:, 2:][is_given])


@same_on_every_backend
def test_calibrates_by_what_the_decoder_reads():
    coda = keras_coda.coda_wrap(
        whisper(), reduction_factor=2, adapter_dim=2, shortcut_dim=2
    )
    transcriber = WhisperTranscriber(coda, tokenizer(), max_length=MAX_LENGTH)
    calibration = keras_coda.training.calibrate(
        coda,
        transcriber.teacher_forced(features()),
        observed=transcriber.logits,
        are_logits=True,
        verbose=0,
    )
    assert calibration.error > 0
    assert all("router" in fits for fits in calibration.blocks.values())


@same_on_every_backend
def test_fewer_frames_are_computed():
    backbone = whisper()
    transcriber = WhisperTranscriber(
        backbone, tokenizer(), max_length=MAX_LENGTH
    )
    short = features(num_frames=10)
    np.testing.assert_array_equal(
        transcriber.predict(short, verbose=0), greedy(backbone, short)
    )


@same_on_every_backend
def test_sounds_become_texts():
    converter = keras_hub.layers.WhisperAudioConverter(max_audio_length=1)
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=40,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_encoder_sequence_length=100,
        max_decoder_sequence_length=12,
    )
    transcriber = WhisperTranscriber(
        backbone, tokenizer(), converter, max_length=3
    )
    sounds = [np.ones(8000), np.zeros(20000), np.ones(100)]
    texts = transcriber.transcribe(sounds, batch_size=2)
    features = np.stack(
        [ops.convert_to_numpy(converter(np.float32(x))) for x in sounds]
    )
    ids = transcriber.predict(features, verbose=0)
    assert texts == transcriber.detokenize(ids)
    assert features.shape == (3, 100, 80)
    assert transcriber.transcribe([]) == []
    for bad, received in (
        (np.zeros(100), "shape \\(\\)"),
        ([np.zeros((100, 2))], "shape \\(100, 2\\)"),
        ([np.zeros(100, "int16")], "dtype int16"),
        ([np.full(100, 3e4)], "samples up to 30000"),
        ([np.zeros(100), np.full(100, np.nan)], "samples up to nan"),
        (["speech.wav"], "dtype <U10"),
    ):
        with pytest.raises(ValueError, match=f"list of sounds.*{received}"):
            transcriber.transcribe(bad)


@same_on_every_backend
def test_a_multilingual_prompt():
    languages = {"<|en|>": 35, "<|de|>": 36}
    transcriber = WhisperTranscriber(
        whisper(), tokenizer(language_tokens=languages), None, "de", 4
    )
    assert transcriber.prompt == [START, 36, 33, 34]
    with pytest.raises(ValueError, match="one of de, en. Received: language="):
        WhisperTranscriber(whisper(), tokenizer(language_tokens=languages))


@same_on_every_backend
def test_bad_arguments():
    with pytest.raises(TypeError, match="`backbone` must be a `keras_hub.mod"):
        WhisperTranscriber(models.bert_backbone(), tokenizer())
    with pytest.raises(TypeError, match="`tokenizer` must be"):
        WhisperTranscriber(whisper(), None)
    with pytest.raises(ValueError, match="at most 10: .* Received: max_length"):
        WhisperTranscriber(whisper(), tokenizer(), max_length=11)
    with pytest.raises(ValueError, match="English model takes no `language`"):
        WhisperTranscriber(whisper(), tokenizer(), language="en", max_length=2)


@same_on_every_backend
def test_trained_without_labels_as_a_backbone():
    dense = WhisperTranscriber(whisper(), tokenizer(), max_length=4)
    coda = WhisperTranscriber(
        keras_coda.coda_wrap(dense.backbone), tokenizer(), max_length=4
    )
    for train in (
        lambda: keras_coda.training.align(coda, dense, features()),
        lambda: keras_coda.training.calibrate(coda, features()),
    ):
        with pytest.raises(TypeError, match="`coda` .* Pass its backbone"):
            train()
