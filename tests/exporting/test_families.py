import keras
import pytest

import keras_coda
from tests.conversion.models import randomize
from tests.conversion.tiny import LIKE_ANOTHER
from tests.conversion.tiny import tiny_models
from tests.exporting.artefacts import Checks

# A fresh process runs what a part of the families gave, because importing
# takes seconds.
NUM_PARTS = 2


@pytest.mark.skipif(
    keras.config.backend() != "tensorflow",
    reason="the other backends have TensorFlow write it, or write less",
)
# Keras warns of the softmax of a sequence of one token.
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_kind_of_family_is_served(part, tmp_path):
    checks = Checks(tmp_path)
    names = sorted(set(tiny_models()) - set(LIKE_ANOTHER))
    for name in names[part::NUM_PARTS]:
        tiny = tiny_models()[name]
        coda = keras_coda.coda_wrap(tiny.make(), reduction_factor=2)
        for layer in coda.trained_layers():
            randomize(layer, seed=4)
        checks.export(
            coda,
            name,
            "tf_saved_model",
            inputs=tiny.inputs(),
            **tiny.export_arguments,
        )
    checks.run()
