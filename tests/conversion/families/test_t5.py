import keras_hub
import numpy as np
import pytest
from keras import ops

import keras_coda
from keras_coda.conversion.families.t5 import bias_of_pairs
from keras_coda.layers import Routed
from keras_coda.layers.routed import Rows
from tests.backend_helpers import slow_to_compile
from tests.conversion.families.family_test import FamilyTest
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import assert_close
from tests.conversion.models import compute
from tests.conversion.models import needs
from tests.conversion.models import randomize
from tests.conversion.models import t5_inputs


class TestT5(FamilyTest):
    backbone = "T5Backbone"
    num_dense_adapters = 2 * NUM_LAYERS

    def norm_parameters(self):
        return (2 + 2 * NUM_LAYERS + 3 * NUM_LAYERS) * HIDDEN_DIM

    @slow_to_compile
    def test_saving(self, tmp_path):
        super().test_saving(tmp_path)

    @slow_to_compile
    def test_freezing_survives_toggling_and_reloading(self, tmp_path):
        super().test_freezing_survives_toggling_and_reloading(tmp_path)

    def test_plain_feedforward(self):
        dense = self.dense_backbone(use_gated_activation=False)
        expected = compute(dense, self.inputs())
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert_close(compute(coda, self.inputs()), expected)

    def test_few_queries_absorb_the_projections(self):
        coda = keras_coda.coda_wrap(
            self.dense_backbone(dropout=0), reduction_factor=4
        )
        # In training they do not.
        expected = coda(self.inputs(), training=True)
        assert_close(
            compute(coda, self.inputs()),
            {k: ops.convert_to_numpy(v) for k, v in expected.items()},
        )

    def test_position_bias_of_routed_tokens(self):
        coda = keras_coda.coda_wrap(self.dense_backbone())
        bias = coda.conditional_blocks[0].block.position_bias(12)
        indices = np.array([[3, 0, 11], [7, 8, 2]])
        rows = Rows(ops.convert_to_tensor(indices))
        states = np.zeros((2, 3, HIDDEN_DIM))
        routed = Routed(
            states,
            states,
            states,
            query_rows=rows,
            context_rows=rows,
            shared=bias,
        )
        gathered = bias_of_pairs(routed)
        for row, routed in enumerate(indices):
            expected = ops.convert_to_numpy(bias)[0][:, routed][:, :, routed]
            assert_close(ops.convert_to_numpy(gathered[row]), expected)

    @needs("T5Seq2SeqLM")
    def test_generate_equals_dense_at_reduction_factor_1(self):
        dense = keras_hub.models.T5Seq2SeqLM(self.dense_backbone())
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert np.array_equal(self.generate(coda), self.generate(dense))

    @needs("T5Seq2SeqLM")
    def test_generate_equals_greedy_search_without_cache(self):
        dense = keras_hub.models.T5Seq2SeqLM(self.dense_backbone())
        coda = keras_coda.coda_wrap(dense, reduction_factor=3)
        # Adapters that do something.
        for layer in coda.backbone.trained_layers():
            randomize(layer, seed=3)
        inputs = self.prompt()
        for step in range(1, 5):
            logits = ops.convert_to_numpy(coda(inputs))
            inputs["decoder_token_ids"][:, step] = logits[:, step - 1].argmax(
                -1
            )
            inputs["decoder_padding_mask"][:, step] = 1
        assert np.array_equal(self.generate(coda), inputs["decoder_token_ids"])
        # The compiled function follows a change of the reduction factor.
        before = self.generate(coda, compile=False)
        coda.reduction_factor = 12
        encoded = coda.call_encoder(
            inputs["encoder_token_ids"], inputs["encoder_padding_mask"]
        )
        assert coda.generate_function is None
        assert_close(encoded, coda.backbone(inputs)["encoder_sequence_output"])
        after = self.generate(coda, compile=False)
        assert before.shape == after.shape

    def prompt(self):
        """Encoder inputs and one start token a row."""
        inputs = t5_inputs()
        inputs["decoder_token_ids"][:, 1:] = 0
        inputs["decoder_padding_mask"][:, 1:] = 0
        return inputs

    def generate(self, task, compile=True):
        if compile:
            task.compile(sampler="greedy")
        outputs = task.generate(self.prompt(), stop_token_ids=None)
        return ops.convert_to_numpy(outputs["decoder_token_ids"])

    # KerasHub's constant for masked positions, when its dense model is made.
    @slow_to_compile
    @pytest.mark.filterwarnings("ignore:overflow encountered in cast")
    def test_float16_with_padding(self):
        # KerasHub's own T5 gives NaN there.
        coda = keras_coda.coda_wrap(
            self.dense_backbone(dtype="float16"), reduction_factor=2
        )
        exact = keras_coda.coda_wrap(self.dense_backbone(), reduction_factor=2)
        exact.set_weights(coda.get_weights())
        for attention in ("k_to_all", "k_to_k"):
            coda.attention = exact.attention = attention
            for name, output in compute(coda, self.inputs()).items():
                assert np.all(np.isfinite(output)), name
        coda.reduction_factor = exact.reduction_factor = 1
        expected = compute(exact, self.inputs())
        for name, output in compute(coda, self.inputs()).items():
            np.testing.assert_allclose(
                output.astype("float32"), expected[name], rtol=0.1, atol=0.1
            )
