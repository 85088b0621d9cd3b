import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.conversion.families.family_test import FamilyTest
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import predict


class TestBert(FamilyTest):
    num_prefix_tokens = 1

    def dense_backbone(self, **kwargs):
        return bert_backbone(**kwargs)

    def inputs(self):
        return bert_inputs()

    def dense_tasks(self, backbone):
        inputs = self.inputs()
        mask_positions = np.array([[1, 3], [0, 2], [5, 11]])
        return [
            (
                keras_hub.models.BertTextClassifier(backbone, num_classes=3),
                inputs,
            ),
            (
                keras_hub.models.BertMaskedLM(backbone),
                {**inputs, "mask_positions": mask_positions},
            ),
            (keras_hub.models.BertTextEmbedder(backbone), inputs),
        ]

    def norm_parameters(self):
        return (1 + 2 * NUM_LAYERS) * 2 * HIDDEN_DIM

    @pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])
    def test_padding_invariance(self, attention):
        coda = keras_coda.coda_wrap(
            self.dense_backbone(), reduction_factor=2, attention=attention
        )
        outputs = predict(coda, bert_inputs(length=16))
        # The same k = 8 of twice the length.
        coda.reduction_factor = 4
        padded = predict(coda, bert_inputs(length=32))
        real = bert_inputs(length=16)["padding_mask"].astype(bool)
        assert_close(
            padded["sequence_output"][:, :16][real],
            outputs["sequence_output"][real],
        )
        assert_close(padded["pooled_output"], outputs["pooled_output"])

    # Keras warns of the softmax over one key.
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
