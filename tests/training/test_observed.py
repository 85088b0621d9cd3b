"""What calibration reads of a model, and how it measures its error."""

import keras
import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_coda
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.calibrate import has_logits
from keras_coda.training.inputs import make_batches
from keras_coda.training.observation import at_factors
from keras_coda.training.observed import Observed
from keras_coda.training.token_importance import TokenImportance
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import randomize
from tests.conversion.models import vit_backbone

PADDING = bert_inputs()["padding_mask"] == 0


@pytest.fixture(scope="module")
def coda():
    coda = randomize(keras_coda.coda_wrap(bert_backbone()))
    coda.trainable = False
    return coda


def observe(coda, read, are_logits=False):
    batches = make_batches(coda, bert_inputs(), 8)
    return Observed(coda, batches, read, are_logits)


def errors(coda, observed, factor):
    """Of each sequence, where blocks have a reduction factor."""
    blocks = coda.conditional_blocks
    with at_factors([factor] * len(blocks), blocks), RoutingScope() as scope:
        outputs = observed.run(observed.inputs[0])
    return observed.errors(0, outputs, scope)[0]


def test_one_logit_is_that_of_the_second_of_two_classes(coda):
    def logit(inputs):
        return coda(inputs)["pooled_output"][:, :1]

    def both(inputs):
        one = logit(inputs)
        return ops.concatenate([ops.zeros_like(one), one], axis=-1)

    found = []
    for read in (logit, both):
        observed = observe(coda, read, are_logits=True)
        importance = TokenImportance(
            coda.conditional_blocks, [coda], np.random.default_rng(0)
        )
        found.append([errors(coda, observed, 6), *importance(observed)])
    for first, last in zip(*found):
        assert np.max(first) > 0
        np.testing.assert_allclose(first, last, rtol=1e-4, atol=1e-9)


def with_noise_at_padding(states):
    """What nobody may read, another time by time."""
    noise = np.random.default_rng().normal(size=states.shape)
    noise = (noise * PADDING[..., None]).astype("float32")
    return states + ops.convert_to_tensor(noise)


@pytest.mark.parametrize("has_two_outputs", [False, True])
def test_padding_is_not_read(coda, has_two_outputs):
    """Also where inputs have other names, and of several outputs."""
    inputs = {
        name: keras.Input((None,), dtype="int32", name=f"{name}_of_mine")
        for name in coda.input
    }
    around = keras.Model(list(inputs.values()), coda(inputs))

    def read(batch):
        outputs = around(batch)
        states = with_noise_at_padding(outputs["sequence_output"])
        return (states, outputs["pooled_output"]) if has_two_outputs else states

    batches = [[ops.convert_to_tensor(bert_inputs()[x]) for x in inputs]]
    observed = Observed(around, batches, read, False)
    assert PADDING.any()
    np.testing.assert_allclose(errors(coda, observed, 1), 0, atol=1e-9)
    assert np.min(errors(coda, observed, 6)) > 1e-6


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(None, True), ("linear", True), ("softmax", False), ("sigmoid", False)],
)
def test_what_has_an_activation_has_no_logits(activation, expected):
    for task_cls, backbone in (
        (keras_hub.models.BertTextClassifier, bert_backbone()),
        (keras_hub.models.ViTImageClassifier, vit_backbone()),
    ):
        task = task_cls(backbone, num_classes=2, activation=activation)
        assert has_logits(task) == expected
        assert has_logits(keras_coda.coda_wrap(task)) == expected
