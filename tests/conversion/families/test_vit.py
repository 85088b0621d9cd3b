import keras_coda
from tests.conversion.families.family_test import FamilyTest
from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import assert_close
from tests.conversion.models import predict


class TestViT(FamilyTest):
    backbone = "ViTBackbone"
    num_prefix_tokens = 1

    def norm_parameters(self):
        return (1 + 2 * NUM_LAYERS) * 2 * HIDDEN_DIM

    def test_without_class_token(self):
        dense = self.dense_backbone(use_class_token=False)
        expected = predict(dense, self.inputs())
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert coda.num_prefix_tokens == 0
        assert_close(predict(coda, self.inputs()), expected)
