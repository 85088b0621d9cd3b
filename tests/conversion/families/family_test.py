"""What every family has to show; its test module subclasses `FamilyTest`."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_coda
from keras_coda.conversion.trained_weights import trained_weights
from keras_coda.layers import ParallelAdapter
from keras_coda.layers import TokenRouter
from tests.conversion.models import assert_close
from tests.conversion.models import predict
from tests.conversion.models import randomize


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

    def dense_backbone(self, **kwargs):
        raise NotImplementedError

    def inputs(self):
        """A batch for the backbone, with padding where there is any."""
        raise NotImplementedError

    def dense_tasks(self, backbone):
        """Pairs of a dense task and its inputs."""
        raise NotImplementedError

    def norm_parameters(self):
        """The number of parameters of all layer normalisations."""
        raise NotImplementedError

    num_prefix_tokens = 0
    # Adapters in the decoder.
    num_dense_adapters = 0

    def fit(self, coda):
        """Fits a converted backbone to random targets at all outputs."""
        inputs = self.inputs()
        model = keras.Model(coda.input, coda(coda.input))
        rng = np.random.default_rng(0)
        targets = keras.tree.map_structure(
            lambda x: rng.normal(size=x.shape).astype("float32"),
            predict(coda, inputs),
        )
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
        history = model.fit(inputs, targets, epochs=3, verbose=0)
        assert np.all(np.isfinite(history.history["loss"]))

    def test_dense_at_reduction_factor_1(self):
        dense = self.dense_backbone()
        expected = predict(dense, self.inputs())
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        assert_close(predict(coda, self.inputs()), expected)

    def test_tasks_at_reduction_factor_1(self):
        for dense, inputs in self.dense_tasks(self.dense_backbone()):
            randomize(dense, seed=1)
            expected = predict(dense, inputs)
            coda = keras_coda.coda_wrap(dense, reduction_factor=1)
            assert isinstance(coda, type(dense))
            assert isinstance(coda.backbone, keras_coda.CodaBackbone)
            assert coda.preprocessor is dense.preprocessor
            assert_close(predict(coda, inputs), expected)

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

    def test_fit_trains_what_it_should(self):
        dense = self.dense_backbone()
        dense_outputs = predict(dense, self.inputs())
        # Soft enough for every router to get a gradient here.
        coda = keras_coda.coda_wrap(dense, reduction_factor=3, epsilon=1.0)
        before = coda.get_weights()
        trained = {id(w) for w in trained_weights(coda).values()}
        self.fit(coda)
        for weight, old, new in zip(coda.weights, before, coda.get_weights()):
            changed = not np.array_equal(old, new)
            assert changed == (id(weight) in trained), weight.path
        kinds = {type(layer) for layer in coda.trained_layers()}
        assert {ParallelAdapter, TokenRouter} < kinds
        # The model that was converted computes what it did.
        assert_close(predict(dense, self.inputs()), dense_outputs, atol=0)

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

    def test_reduction_changes_outputs(self):
        dense = self.dense_backbone()
        expected = predict(dense, self.inputs())
        coda = keras_coda.coda_wrap(dense, reduction_factor=4)
        reduced = predict(coda, self.inputs())
        coda.reduction_factor = 1
        assert_close(predict(coda, self.inputs()), expected)
        coda.reduction_factor = [4] * len(coda.conditional_blocks)
        assert coda.reduction_factor == 4
        assert_close(predict(coda, self.inputs()), reduced)
        difference = keras.tree.map_structure(
            lambda a, b: np.abs(a - b).max(), reduced, expected
        )
        assert max(keras.tree.flatten(difference)) > 1e-2

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
            assert_close(predict(coda, self.inputs()), expected)

    def test_saving(self, tmp_path):
        coda = keras_coda.coda_wrap(
            self.dense_backbone(),
            reduction_factor=[2, 3],
            attention="k_to_k",
            adapter_dim=8,
            adapter_scale=2.0,
        )
        randomize(coda, seed=2)
        expected = predict(coda, self.inputs())

        coda.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert settings(loaded) == settings(coda)
        assert_close(predict(loaded, self.inputs()), expected)

        coda.save_weights(tmp_path / "model.weights.h5")
        fresh = type(coda).from_config(coda.get_config())
        fresh.load_weights(tmp_path / "model.weights.h5")
        assert_close(predict(fresh, self.inputs()), expected)

        coda.save_to_preset(tmp_path / "preset")
        preset = keras_hub.models.Backbone.from_preset(str(tmp_path / "preset"))
        assert type(preset) is type(coda)
        assert preset.reduction_factor == [2, 3]
        assert_close(predict(preset, self.inputs()), expected)
        assert len(preset.trainable_weights) == len(coda.trainable_weights)

    def test_saving_tasks(self, tmp_path):
        for dense, inputs in self.dense_tasks(self.dense_backbone()):
            coda = keras_coda.coda_wrap(dense, reduction_factor=2)
            randomize(coda, seed=2)
            expected = predict(coda, inputs)
            coda.save_to_preset(tmp_path / dense.name)
            preset = type(dense).from_preset(str(tmp_path / dense.name))
            assert type(preset) is type(coda)
            assert_close(predict(preset, inputs), expected)
            coda.save(tmp_path / "task.keras")
            loaded = keras.models.load_model(
                tmp_path / "task.keras", compile=False
            )
            assert_close(predict(loaded, inputs), expected)
            for copy in (preset, loaded):
                assert {w.path for w in copy.trainable_weights} == {
                    w.path for w in coda.trainable_weights
                }

    def test_adapter_file(self, tmp_path):
        path = tmp_path / "adapter.safetensors"
        coda = keras_coda.coda_wrap(self.dense_backbone(), reduction_factor=2)
        for layer in coda.trained_layers():
            randomize(layer, seed=2)
        expected = predict(coda, self.inputs())
        coda.save_adapter(path)
        # The same pretrained weights in another object.
        other = keras_coda.coda_wrap(self.dense_backbone(), reduction_factor=4)
        other.load_adapter(path)
        assert other.reduction_factor == 2
        assert_close(predict(other, self.inputs()), expected)

    def test_mixed_bfloat16(self):
        dense = self.dense_backbone(dtype="mixed_bfloat16")
        coda = keras_coda.coda_wrap(dense, reduction_factor=3)
        assert coda.dtype_policy.name == "mixed_bfloat16"
        for layer in coda.trained_layers():
            if isinstance(layer, TokenRouter):
                assert layer.compute_dtype == "float32"
        self.fit(coda)
        outputs = predict(coda, self.inputs())
        assert all(
            np.all(np.isfinite(np.asarray(x, "float32")))
            for x in keras.tree.flatten(outputs)
        )
