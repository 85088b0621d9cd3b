import keras
import numpy as np
import pytest

import keras_coda
from keras_coda.layers.routed import BlockRouting
from keras_coda.layers.routed import Rows
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.inputs import make_batches
from keras_coda.training.observed import Observed
from keras_coda.training.token_importance import TokenImportance
from tests.backend_helpers import slow_to_compile
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import randomize

READ = {
    "logits": lambda coda: lambda inputs: coda(inputs)["pooled_output"],
    "pinned": lambda coda: "pinned",
    "tokens": lambda coda: "tokens",
}


@pytest.mark.parametrize("what", sorted(READ))
def test_slopes_are_those_of_finite_differences(what):
    coda = keras_coda.coda_wrap(bert_backbone(), shortcut_dim=2)
    randomize(coda)
    coda.trainable = False
    batches = make_batches(coda, bert_inputs(), 8)
    observed = Observed(coda, batches, READ[what](coda), what == "logits")
    blocks = coda.conditional_blocks
    importance = TokenImportance(blocks, [coda], np.random.default_rng(0))
    shape = tuple(batches[0]["token_ids"].shape)
    first, second = importance(observed)
    assert first.shape == second.shape == shape
    (drawn,) = importance.draw(observed)
    slopes = importance.slopes.of(batches[0], [drawn])

    def likelihood(moved, row, token):
        def choose(block, *args):
            weights = np.ones(shape, "float32")
            if block is moved:
                weights[row, token] += step
            return BlockRouting(keras.ops.convert_to_tensor(weights), Rows())

        def value():
            with RoutingScope(choose) as scope:
                outputs = observed.run(batches[0])
            (states,) = observed.states(outputs, scope)
            states = keras.ops.convert_to_numpy(states).astype("float64")
            return np.sum(states * drawn)

        step = 0.01
        above = value()
        step = -0.01
        return (above - value()) / 0.02

    for block, slope in zip(blocks, slopes):
        for row, token in ((0, 0), (0, 2), (1, 1)):
            assert slope[row, token] == pytest.approx(
                likelihood(block, row, token), rel=2e-2, abs=1e-3
            )
    # Padding changes nothing that is read, nor does what nobody reads.
    padding = bert_inputs()["padding_mask"] == 0
    assert padding.any()
    assert not first[padding].any() and not second[padding].any()
    assert bool(second[:, 1:].any()) == (what == "tokens")


def test_slopes_in_mixed_precision():
    slopes = []
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        try:
            coda = keras_coda.coda_wrap(bert_backbone())
            coda.trainable = False
            batches = make_batches(coda, bert_inputs(), 8)
            importance = TokenImportance(
                coda.conditional_blocks, [coda], np.random.default_rng(0)
            )
            importance(Observed(coda, batches, "tokens", False))
            # The same direction for both, of many sizes.
            shape = *batches[0]["token_ids"].shape, HIDDEN_DIM
            drawn = np.random.default_rng(0).normal(size=shape)
            slopes.append(
                importance.slopes.of(batches[0], [drawn.astype("float32")])
            )
        finally:
            keras.config.set_dtype_policy("float32")
    for own, others in zip(*slopes):
        np.testing.assert_allclose(own, others, rtol=0.1, atol=0.1)


@slow_to_compile
def test_batches_of_other_shapes():
    coda = keras_coda.coda_wrap(bert_backbone())
    coda.trainable = False
    importance = TokenImportance(
        coda.conditional_blocks, [coda], np.random.default_rng(0)
    )
    # As a last batch.
    for size in (2, 1):
        inputs = {name: values[:size] for name, values in bert_inputs().items()}
        batches = make_batches(coda, inputs, 8)
        first, second = importance(Observed(coda, batches, "tokens", False))
        assert first.shape == second.shape == inputs["token_ids"].shape
        assert first.min() >= 0 and first.max() > 0
