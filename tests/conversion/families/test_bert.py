import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.conversion.families.family_test import FamilyTest
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import assert_close
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict


class TestBert(FamilyTest):
    backbone = "BertBackbone"
    num_prefix_tokens = 1

    def norm_parameters(self):
        return (1 + 2 * NUM_LAYERS) * 2 * HIDDEN_DIM

    @pytest.mark.filterwarnings("ignore:.*softmax over axis:UserWarning")
    @pytest.mark.filterwarnings("ignore:Exception enc.*Softmax:UserWarning")
    def test_lengths_and_an_empty_row(self):
        coda = keras_coda.coda_wrap(self.dense_backbone(), reduction_factor=4)
        for length, lengths in [(12, (12, 0)), (3, (2, 3, 1)), (1, (1,))]:
            outputs = predict(coda, bert_inputs(length, lengths))
            assert outputs["sequence_output"].shape == (
                len(lengths),
                length,
                HIDDEN_DIM,
            )
            assert np.all(np.isfinite(outputs["sequence_output"]))

    def test_dtype_of_a_preset(self, tmp_path):
        dense = keras_hub.models.BertTextClassifier(
            self.dense_backbone(), num_classes=2
        )
        coda = keras_coda.coda_wrap(dense)
        coda.save_to_preset(tmp_path / "preset")
        for cls in (keras_hub.models.Backbone, type(dense)):
            loaded = cls.from_preset(str(tmp_path / "preset"), dtype="bfloat16")
            backbone = getattr(loaded, "backbone", loaded)
            for layer in (loaded, *backbone.conditional_blocks):
                assert layer.compute_dtype == "bfloat16"

    def test_no_dropout_uses_fused_attention(self):
        # Keras then calls `ops.dot_product_attention`, another code path.
        dense = self.dense_backbone(dropout=0.0)
        inputs = bert_inputs(12, (12, 7, 0))
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        real = inputs["padding_mask"].astype(bool)
        assert_close(
            predict(coda, inputs)["sequence_output"][real],
            predict(dense, inputs)["sequence_output"][real],
        )
        coda.reduction_factor = 4
        for output in predict(coda, inputs).values():
            assert np.all(np.isfinite(output))

    def test_float16(self):
        # JAX on a CPU has no fused attention in it.
        dense = self.dense_backbone(dtype="mixed_float16")
        inputs = bert_inputs(12, (12, 7))
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        real = inputs["padding_mask"].astype(bool)
        np.testing.assert_allclose(
            predict(coda, inputs)["sequence_output"][real],
            predict(dense, inputs)["sequence_output"][real],
            atol=2e-2,
        )
        coda.reduction_factor = 4
        for output in predict(coda, inputs).values():
            assert np.all(np.isfinite(output))
