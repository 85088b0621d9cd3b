import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion import Family
from keras_coda.conversion import register_family
from keras_coda.training.masked_frames import MaskedFramesObjective
from keras_coda.training.masked_frames import find_frames
from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import predict

RandomProjectionQuantizer = keras_coda.training.RandomProjectionQuantizer


class SpeechBackbone(keras_hub.models.Backbone):
    """One token of two frames."""

    def __init__(self):
        frames = keras.Input((None, 5), name="frames")
        mask = keras.Input((None,), dtype="int32", name="padding_mask")
        x = keras.layers.Conv1D(8, 3, strides=2, padding="same")(frames)
        self.transformer_layers = [
            keras_hub.layers.TransformerEncoder(8, 2, normalize_first=True)
        ]
        x = self.transformer_layers[0](x, padding_mask=mask[:, ::2])
        super().__init__({"frames": frames, "padding_mask": mask}, x)

    def get_config(self):
        return {}


@pytest.fixture
def coda():
    register_family(Family(backbone=SpeechBackbone))
    return keras_coda.coda_wrap(SpeechBackbone(), adapter_dim=4)


def utterances(*lengths):
    generator = np.random.default_rng(0)
    return [generator.normal(size=(length, 5)) for length in lengths]


@same_on_every_backend
def test_quantizer_finds_the_nearest():
    quantizer = RandomProjectionQuantizer(12, 32, code_dim=4, seed=0)
    vectors = np.random.default_rng(1).normal(size=(3, 7, 12))
    codes = quantizer(vectors)
    projected = vectors @ quantizer.projection.astype("float64")
    projected /= np.linalg.norm(projected, axis=-1, keepdims=True)
    distances = np.linalg.norm(
        projected[..., None, :] - quantizer.codebook.astype("float64"), axis=-1
    )
    np.testing.assert_array_equal(codes, distances.argmin(axis=-1))
    assert codes.dtype == "int32"
    again = RandomProjectionQuantizer(12, 32, code_dim=4, seed=0)
    np.testing.assert_array_equal(again(vectors), codes)


@same_on_every_backend
def test_quantizer_arguments():
    with pytest.raises(ValueError, match="codebook_size=0"):
        RandomProjectionQuantizer(12, codebook_size=0)
    with pytest.raises(ValueError, match=r"of shape \(..., 12\)"):
        RandomProjectionQuantizer(12, 4)(np.ones((3, 11)))


@same_on_every_backend
def test_batches(coda):
    objective = MaskedFramesObjective(
        coda, None, None, 399, 0.4, np.random.default_rng(0)
    )
    assert (objective.num_stacked, objective.num_frames) == (2, 400)
    # 40 frames are 20 tokens.
    assert objective.span == 20
    speech = utterances(*[399] * 30, 101, 1)
    x, codes, weights = objective.make_batch(speech)
    first = {name: values[:1] for name, values in x.items()}
    assert predict(objective.model, first).shape == (1, 200, 8192)
    np.testing.assert_allclose(weights[:30].mean(), 0.4, atol=0.1)
    is_masked = weights.astype(bool)
    hidden = is_masked.repeat(2, axis=1)
    lengths = np.array([*[399] * 30, 101, 1])
    real = np.arange(400) < lengths[:, None]
    np.testing.assert_array_equal(x["padding_mask"], real)
    # Padding is not counted, nor a token that is padding in part.
    assert weights[30].any() and not weights[31].any()
    assert not (hidden & ~real).any()
    np.testing.assert_allclose(x["frames"][hidden].std(), 0.1, atol=0.01)
    for row, utterance in enumerate(speech):
        shown = ~hidden[row, : len(utterance)]
        seen = x["frames"][row, : len(utterance)][shown]
        np.testing.assert_allclose(seen, utterance[shown], rtol=1e-6)
        assert not x["frames"][row, len(utterance) :].any()
    # The targets do not depend on how loud an utterance is.
    expected = speech[0] - speech[0].mean(axis=0)
    expected = (expected / (speech[0].std(axis=0) + 1e-3))[:398]
    expected = objective.quantizer(expected.reshape((199, 10)))
    masked = np.flatnonzero(is_masked[0])
    np.testing.assert_array_equal(codes[0, masked], expected[masked])


def test_pretraining_learns_the_codes(coda):
    adapter = coda.conditional_blocks[0].adapter
    before = adapter.get_weights()
    history = keras_coda.training.pretrain(
        coda,
        utterances(40, 30, 40, 21),
        batch_size=4,
        epochs=8,
        optimizer=keras.optimizers.Adam(0.03),
        verbose=0,
    ).history
    assert history["loss"][-1] < history["loss"][0]
    assert "accuracy" in history
    for weight, old in zip(adapter.get_weights(), before, strict=True):
        assert not np.allclose(weight, old)


@same_on_every_backend
def test_bad_utterances(coda):
    with pytest.raises(ValueError, match=r"\(frames, 5\). .* shape \(8, 4\)"):
        keras_coda.training.pretrain(coda, [np.ones((8, 4))], verbose=0)
    with pytest.raises(ValueError, match="`x` must hold at least one"):
        keras_coda.training.pretrain(coda, [], verbose=0)


@same_on_every_backend
def test_which_inputs_are_frames():
    frames = keras.Input((None, 5), name="frames")
    mask = keras.Input((None,), name="mask")
    images = keras.Input((8, 8, 3), name="images")
    assert find_frames({"frames": frames, "mask": mask}) == "frames"
    assert find_frames({"frames": frames}) == "frames"
    assert find_frames({"mask": mask}) is None
    assert find_frames({"frames": frames, "images": images}) is None
    token_ids = keras.Input((None, 5), dtype="int32")
    assert find_frames({"token_ids": token_ids}) is None
