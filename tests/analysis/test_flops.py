import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.conversion.models import bert_backbone
from tests.conversion.models import t5_backbone
from tests.conversion.models import vit_backbone

pytestmark = same_on_every_backend

# One block as wide as a real one: the rest, which is not counted, is little.
WIDE = {
    "bert": lambda: keras_hub.models.BertBackbone(
        vocabulary_size=10,
        num_layers=1,
        num_heads=8,
        hidden_dim=512,
        intermediate_dim=2048,
    ),
    "t5": lambda: keras_hub.models.T5Backbone(
        vocabulary_size=10,
        num_layers=1,
        num_heads=8,
        hidden_dim=512,
        intermediate_dim=2048,
        activation="relu",
        use_gated_activation=False,
    ),
    "vit": lambda: keras_hub.models.ViTBackbone(
        image_shape=(160, 160, 3),
        patch_size=16,
        num_layers=1,
        num_heads=8,
        hidden_dim=512,
        mlp_dim=2048,
    ),
}


@pytest.mark.skipif(
    keras.config.backend() != "jax", reason="asks XLA what it computes"
)
@pytest.mark.parametrize("family", WIDE)
@pytest.mark.parametrize(
    "settings",
    [
        {"reduction_factor": 1},
        {"reduction_factor": 4, "shortcut_dim": 64},
        {"reduction_factor": 4, "attention": "k_to_k"},
        {"reduction_factor": 16},
    ],
    ids=["dense", "k_to_all", "k_to_k", "absorbed"],
)
def test_agrees_with_xla(family, settings):
    import jax

    coda = keras_coda.coda_wrap(WIDE[family](), **settings)
    batch_size, length, decoder_length = 2, 101, 33
    inputs = {
        tensor.name: np.zeros(
            [
                batch_size,
                *(
                    size
                    or (decoder_length if "decoder" in tensor.name else length)
                    for size in tensor.shape[1:]
                ),
            ],
            tensor.dtype,
        )
        for tensor in coda.inputs
    }
    if family == "vit":
        (inputs,) = inputs.values()
    compiled = (
        jax.jit(lambda x: coda(x, training=False)).lower(inputs).compile()
    )
    counted = keras_coda.analysis.flops(
        coda, length, batch_size, decoder_sequence_length=decoder_length
    )
    multiply_adds = sum(counted.coda.values())
    assert 2 * multiply_adds == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.03
    )


def test_by_hand():
    # 2 blocks, hidden_dim 16, 2 heads, intermediate_dim 32, 12 tokens, k = 3:
    # so few that keys and values are not projected.
    coda = keras_coda.coda_wrap(bert_backbone(), adapter_dim=8, shortcut_dim=2)
    counted = keras_coda.analysis.flops(coda, 12, batch_size=5)
    assert counted.coda == {
        "projections": 5 * 2 * (3 * 2 * 16**2 + 3 * 2 * 16**2),
        "attention": 5 * 2 * 3 * 12 * 2 * (2 * 16),
        "feedforward": 5 * 2 * 3 * 2 * 16 * 32,
        "adapter": 5 * 2 * 12 * 2 * 16 * 8,
        "shortcut": 5 * 2 * 12 * 2 * 16 * 2,
        "router": 5 * 2 * 12 * 16,
        "other": 5 * 16**2,
    }
    assert counted.dense["projections"] == 5 * 2 * 12 * 4 * 16**2
    assert counted.dense["attention"] == 5 * 2 * 12 * 12 * 2 * 16
    assert counted.dense["adapter"] == 0
    assert counted.parallel_adapter["adapter"] == counted.coda["adapter"]
    assert counted.ratio == pytest.approx(
        sum(counted.parallel_adapter.values()) / sum(counted.coda.values())
    )


def test_other_settings_than_the_models():
    coda = keras_coda.coda_wrap(bert_backbone())
    dense = keras_coda.analysis.flops(coda, 12, reduction_factor=1)
    assert dense.ratio == 1
    other = keras_coda.analysis.flops(
        coda, 12, reduction_factor=[1, 12], attention="k_to_k"
    )
    coda = keras_coda.coda_wrap(
        bert_backbone(), reduction_factor=[1, 12], attention="k_to_k"
    )
    assert keras_coda.analysis.flops(coda, 12).coda == other.coda


def test_table_and_length_of_a_vit():
    coda = keras_coda.coda_wrap(vit_backbone())
    text = str(keras_coda.analysis.flops(coda))
    assert "1 x 17 tokens, r = 4, k_to_all" in text
    assert "feedforward" in text and "shortcut" not in text


def test_bad_arguments():
    with pytest.raises(
        TypeError, match="`model` must be .* `keras_coda.coda_w"
    ):
        keras_coda.analysis.flops(t5_backbone(), 12)
    coda = keras_coda.coda_wrap(t5_backbone())
    with pytest.raises(ValueError, match="`sequence_length` must be given"):
        keras_coda.analysis.flops(coda)
    with pytest.raises(ValueError, match="`attention` must be one of"):
        keras_coda.analysis.flops(coda, 12, attention="all_to_all")
