import io

import keras
import keras_hub
import numpy as np
import pytest
import sentencepiece

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.training.masked_patches import MaskedPatchesObjective
from keras_coda.training.masked_patches import from_patches
from keras_coda.training.masked_patches import to_patches
from keras_coda.training.span_corruption import SpanCorruptionObjective
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import bert_backbone
from tests.conversion.models import channels_first_vit
from tests.conversion.models import predict
from tests.conversion.models import t5_backbone
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs
from tests.conversion.tiny.moonshine import MOONSHINE
from tests.conversion.tiny.whisper import WHISPER

WORDS = ["the", "cat", "sat", "on", "mat", "dog", "ran", "to"]
TEXTS = [
    " ".join(np.random.default_rng(seed).choice(WORDS, 10))
    for seed in range(16)
]


def bert_tokenizer():
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return keras_hub.models.BertTokenizer([*special, *WORDS])


def t5_tokenizer():
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=proto,
        vocab_size=len(WORDS) + 3,
        model_type="WORD",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="</s>",
        unk_piece="<unk>",
        minloglevel=2,
    )
    return keras_hub.models.T5Tokenizer(proto.getvalue())


def bert():
    dense = bert_backbone(vocabulary_size=13)
    return dense, TEXTS, {"tokenizer": bert_tokenizer(), "sequence_length": 12}


def t5():
    dense = t5_backbone(vocabulary_size=112)
    return dense, TEXTS, {"tokenizer": t5_tokenizer(), "sequence_length": 12}


def vit():
    images = np.random.default_rng(0).normal(size=(16, *vit_inputs().shape[1:]))
    return vit_backbone(), images.astype("float32"), {}


def whisper():
    dense = keras_hub.models.WhisperBackbone(**WHISPER)
    generator = np.random.default_rng(0)
    return dense, list(generator.normal(size=(16, 24, 8))), {}


# BERT's pooler is no part of masked language modelling.
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "make, all_weights",
    [
        (bert, False),
        pytest.param(bert, True, marks=slow_to_compile),
        pytest.param(t5, False, marks=slow_to_compile),
        pytest.param(vit, False, marks=slow_to_compile),
        pytest.param(whisper, False, marks=slow_to_compile),
    ],
)
def test_trains_what_it_should(make, all_weights):
    dense, x, arguments = make()
    coda = keras_coda.coda_wrap(dense, reduction_factor=4, adapter_dim=4)
    before = {id(w): np.array(w) for w in coda.weights}
    reduction_factors = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: reduction_factors.append(
            coda.reduction_factor
        )
    )
    history = keras_coda.training.pretrain(
        coda,
        x,
        all_weights=all_weights,
        batch_size=8,
        epochs=6,
        optimizer=keras.optimizers.Adam(0.01),
        callbacks=[watch],
        verbose=0,
        **arguments,
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert ("accuracy" in history) == (make is not vit)
    assert set(reduction_factors) == {512 / 192}
    assert coda.reduction_factor == 4
    trained = {id(weight) for weight in trained_weights(coda).values()}
    assert {id(w) for w in coda.trainable_weights} == trained
    frozen = [w for w in coda.weights if id(w) not in trained]
    changed = [not np.array_equal(np.array(w), before[id(w)]) for w in frozen]
    assert any(changed) == all_weights


@slow_to_compile
def test_a_task_keeps_its_own_head_and_tokenizer():
    dense = keras_hub.models.BertMaskedLM(
        bert_backbone(vocabulary_size=13),
        preprocessor=keras_hub.models.BertMaskedLMPreprocessor(
            bert_tokenizer()
        ),
    )
    coda = keras_coda.coda_wrap(dense, adapter_dim=4)
    head = np.array(coda.masked_lm_head.weights[0])
    keras_coda.training.pretrain(coda, TEXTS, verbose=0)
    assert not np.array_equal(np.array(coda.masked_lm_head.weights[0]), head)
    # A classifier has the tokenizer, and a head for something else.
    dense = keras_hub.models.BertTextClassifier(
        bert_backbone(vocabulary_size=13),
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            bert_tokenizer()
        ),
    )
    coda = keras_coda.coda_wrap(dense, adapter_dim=4)
    head = np.array(coda.output_dense.kernel)
    keras_coda.training.pretrain(coda, TEXTS, verbose=0)
    assert np.array_equal(np.array(coda.output_dense.kernel), head)


def span_corruption(tokenizer, vocabulary_size=112, seed=0):
    coda = keras_coda.coda_wrap(t5_backbone(vocabulary_size=vocabulary_size))
    task_cls = keras_coda.coda_wrap(
        keras_hub.models.T5Seq2SeqLM(t5_backbone())
    ).__class__
    return SpanCorruptionObjective(
        coda, task_cls, tokenizer, 20, None, np.random.default_rng(seed)
    )


@same_on_every_backend
def test_span_corruption_batches():
    tokenizer = t5_tokenizer()
    objective = span_corruption(tokenizer)
    # 3 of 20 tokens are hidden in one span.
    assert (objective.input_length, objective.target_length) == (19, 5)
    x, targets, weights = objective.make_batch([*TEXTS[:3], "cat", ""])
    for row, text in enumerate(TEXTS[:3]):
        token_ids = list(np.asarray(tokenizer(text)))
        inputs = x["encoder_token_ids"][row]
        inputs = list(inputs[x["encoder_padding_mask"][row].astype(bool)])
        target = list(targets[row][weights[row].astype(bool)])
        assert inputs[-1] == target[-1] == tokenizer.end_token_id
        # What the first sentinel, 99 after the vocabulary's end, stands for.
        sentinel = tokenizer.vocabulary_size() + 99
        assert target[0] == sentinel
        place = inputs.index(sentinel)
        restored = inputs[:place] + target[1:-1] + inputs[place + 1 : -1]
        assert restored == token_ids
        assert x["decoder_token_ids"][row, 0] == 0
        decoder_inputs = list(x["decoder_token_ids"][row])
        assert decoder_inputs[1 : len(target)] == target[:-1]
    assert np.array_equal(x["decoder_padding_mask"], weights)
    # Nothing can be hidden in less than two tokens.
    assert not weights[3:].any()


@same_on_every_backend
def test_sentinels_need_room():
    tokenizer = t5_tokenizer()
    with pytest.raises(ValueError, match="has 50 rows, the tokenizer 11 tok"):
        span_corruption(tokenizer, vocabulary_size=50)


def test_masked_patches_batches():
    coda = keras_coda.coda_wrap(vit_backbone())
    objective = MaskedPatchesObjective(
        coda, None, None, None, None, np.random.default_rng(0)
    )
    images = vit_inputs()
    x, targets, weights = objective.make_batch(list(images))
    assert x.shape == images.shape
    assert predict(objective.model, x).shape == targets.shape
    # 10 of 16 patches.
    assert np.array_equal(weights.sum(axis=1), [10.0] * len(images))
    patches = to_patches(images, (4, 4)).reshape(targets.shape)
    seen = to_patches(x, (4, 4)).reshape(targets.shape)
    is_masked = weights.astype(bool)
    np.testing.assert_array_equal(seen[~is_masked], patches[~is_masked])
    for row, mask in enumerate(is_masked):
        assert np.ptp(seen[row][mask], axis=0).max() == 0
    np.testing.assert_allclose(targets.mean(axis=-1), 0, atol=1e-5)
    np.testing.assert_allclose(targets.std(axis=-1), 1, atol=1e-2)


def test_masked_patches_of_images_whose_channels_come_first():
    batches = []
    for backbone, axis in ((vit_backbone(), -1), (channels_first_vit(), 1)):
        objective = MaskedPatchesObjective(
            keras_coda.coda_wrap(backbone),
            *[None] * 4,
            np.random.default_rng(0),
        )
        images = list(np.moveaxis(vit_inputs(), -1, axis))
        x, *rest = objective.make_batch(images)
        assert x.shape[axis] == 3
        batches.append([np.moveaxis(x, axis, -1), *rest])
    for first, last in zip(*batches):
        np.testing.assert_array_equal(first, last)


def test_patches_round_trip():
    images = np.random.default_rng(0).normal(size=(2, 4, 6, 3))
    patches = to_patches(images, (2, 3))
    assert patches.shape == (2, 2, 2, 18)
    np.testing.assert_array_equal(
        patches[0, 1, 0].reshape(2, 3, 3), images[0, 2:, :3]
    )
    np.testing.assert_array_equal(from_patches(patches, (2, 3)), images)


def test_bad_arguments():
    dense, x, arguments = bert()
    pretrain = keras_coda.training.pretrain
    with pytest.raises(TypeError, match="`coda` must be .* `keras_coda.coda_w"):
        pretrain(dense, x, **arguments)
    coda = keras_coda.coda_wrap(dense)
    with pytest.raises(ValueError, match="`tokenizer` of the backbone"):
        pretrain(coda, x)
    with pytest.raises(ValueError, match="mask_rate=1.5"):
        pretrain(coda, x, mask_rate=1.5, **arguments)
    with pytest.raises(ValueError, match="`reduction_factor` must be at least"):
        pretrain(coda, x, reduction_factor=0.5, **arguments)
    with pytest.raises(ValueError, match="must be at most 64, for which"):
        pretrain(coda, x, **{**arguments, "sequence_length": 65})
    assert coda.reduction_factor == 4


@same_on_every_backend
def test_a_family_without_an_objective():
    dense = keras_hub.models.MoonshineBackbone(**MOONSHINE)
    coda = keras_coda.coda_wrap(dense)
    with pytest.raises(TypeError, match="not raw audio.*MoonshineBackbone"):
        keras_coda.training.pretrain(coda, np.zeros((2, 4000, 1), "float32"))
