"""What a family of each kind has to show beside `test_families.py`.

For one family of each block class: a test module subclasses `FamilyTest`.
"""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from tests.conversion.models import assert_close
from tests.conversion.models import compute
from tests.conversion.models import predict
from tests.conversion.models import randomize
from tests.conversion.tiny import tiny_models


def settings(coda):
    """The config, without the ids that Keras gives shared objects."""
    config = coda.get_config()
    config["backbone"] = {
        key: value
        for key, value in config["backbone"]["config"].items()
        if key != "dtype"
    }
    return config


class FamilyTest:
    """Subclasses define the methods that raise `NotImplementedError`."""

    # The name of the dense backbone class.
    backbone = None

    def dense_backbone(self, **kwargs):
        return tiny_models()[self.backbone].make(**kwargs)

    def inputs(self):
        return tiny_models()[self.backbone].inputs()

    def norm_parameters(self):
        """The number of parameters of all layer normalisations."""
        raise NotImplementedError

    num_prefix_tokens = 0
    # Adapters in the decoder.
    num_dense_adapters = 0

    def test_attributes(self):
        dense = self.dense_backbone()
        coda = keras_coda.coda_wrap(dense)
        assert isinstance(coda, keras_hub.models.Backbone)
        assert coda.num_prefix_tokens == self.num_prefix_tokens
        for key in dense.get_config():
            if key not in ("name", "trainable"):
                assert getattr(coda, key) == getattr(dense, key), key
        assert coda.token_embedding is dense.token_embedding
        assert coda.count_params() > dense.count_params()

    def test_frozen_weights_are_shared(self):
        dense = self.dense_backbone()
        coda = keras_coda.coda_wrap(dense)
        shared = {id(w) for w in dense.weights} & {id(w) for w in coda.weights}
        num_parameters = sum(
            int(np.prod(w.shape)) for w in dense.weights if id(w) in shared
        )
        assert num_parameters == dense.count_params() - self.norm_parameters()

    def test_trainable_parameters(self):
        adapter_dim = 8
        coda = keras_coda.coda_wrap(
            self.dense_backbone(), adapter_dim=adapter_dim
        )
        hidden_dim, num_blocks = coda.hidden_dim, len(coda.conditional_blocks)
        num_adapters = num_blocks + self.num_dense_adapters
        adapter = 2 * hidden_dim * adapter_dim + adapter_dim + hidden_dim
        texts = []
        summary = coda.trainable_summary(print_fn=texts.append)
        assert summary.parts == {
            "adapters": num_adapters * adapter,
            "routers": num_blocks * hidden_dim,
            "layer norms": self.norm_parameters(),
            "LoRA": 0,
            "task head": 0,
        }
        assert summary.trainable == sum(summary.parts.values())
        assert summary.trainable + summary.frozen == coda.count_params()
        assert summary.trainable == sum(
            int(np.prod(w.shape)) for w in coda.trainable_weights
        )
        assert f"{summary.frozen:,}" in texts[0]

    def test_freezing_survives_toggling_and_reloading(self, tmp_path):
        coda = keras_coda.coda_wrap(self.dense_backbone())
        trained = {w.path for w in coda.trainable_weights}
        assert trained == set(trained_weights(coda))
        coda.trainable = False
        assert coda.trainable_weights == []
        coda.trainable = True
        assert {w.path for w in coda.trainable_weights} == trained
        coda.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert {w.path for w in loaded.trainable_weights} == trained
        outer = keras.Model(coda.input, coda(coda.input))
        outer.trainable = False
        outer.trainable = True
        assert {w.path for w in outer.trainable_weights} == trained

    @pytest.mark.parametrize("attention", ["k_to_all", "k_to_k"])
    def test_jit_graph_and_eager_agree(self, attention):
        coda = keras_coda.coda_wrap(
            self.dense_backbone(), reduction_factor=3, attention=attention
        )
        coda.compile(jit_compile=False)
        expected = predict(coda, self.inputs())
        assert_close(coda(self.inputs()), expected)
        if keras.config.backend() != "torch":
            assert coda.supports_jit
            coda.compile(jit_compile=True)
            # XLA adds up in another order.
            assert_close(predict(coda, self.inputs()), expected, atol=1e-4)

    def test_saving(self, tmp_path):
        coda = keras_coda.coda_wrap(
            self.dense_backbone(),
            reduction_factor=[2, 3],
            attention="k_to_k",
            adapter_dim=8,
            adapter_scale=2.0,
        )
        randomize(coda, seed=2)
        expected = compute(coda, self.inputs())

        coda.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert settings(loaded) == settings(coda)
        assert_close(compute(loaded, self.inputs()), expected)

        coda.save_weights(tmp_path / "model.weights.h5")
        fresh = type(coda).from_config(coda.get_config())
        fresh.load_weights(tmp_path / "model.weights.h5")
        assert_close(compute(fresh, self.inputs()), expected)

        coda.save_to_preset(tmp_path / "preset")
        preset = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
        assert type(preset) is type(coda)
        assert preset.reduction_factor == [2, 3]
        assert_close(compute(preset, self.inputs()), expected)
        assert len(preset.trainable_weights) == len(coda.trainable_weights)
