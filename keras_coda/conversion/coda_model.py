"""What a converted backbone and a converted task have in common."""

import contextlib
import os
import tempfile

import keras
import numpy as np

from keras_coda.backend_differences import compiled_forward
from keras_coda.backend_differences import compiles_whole_models
from keras_coda.conversion import adapter_file
from keras_coda.conversion.quantization import quantize_frozen
from keras_coda.conversion.settings import Settings
from keras_coda.conversion.trainable_summary import trainable_summary
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.block_settings import field_names
from keras_coda.layers.conditional_transformer_block import ATTENTIONS
from keras_coda.layers.partly_frozen import lora_layers
from keras_coda.layers.partly_frozen import lora_weights
from keras_coda.layers.set_reduction_factor import set_reduction_factor
from keras_coda.validation import validate_choice


class CodaModel:
    """Mixin of `CodaBackbone` and `CodaTask`."""

    # The callback that changes the reduction factor during `fit`, if any.
    reduction_callback = None

    def fit(self, *args, **kwargs):
        """Trains the model; see `keras.Model.fit`."""
        for layer in lora_layers(self):
            _restart_lora(layer)
        try:
            return super().fit(*args, **kwargs)
        finally:
            # Keras does not call `on_train_end` when training is interrupted.
            if self.reduction_callback is not None:
                self.reduction_callback.restore()

    def predict(self, *args, **kwargs):
        """Computes outputs; see `keras.Model.predict`.

        With `compile(jit_compile=True)` PyTorch compiles it too, for each
        length of the inputs, and once for all batches but those of one row,
        which it compiles for themselves. Training and evaluation are not
        compiled there.
        """
        backbone_of(self).warn_of_new_routers()
        return super().predict(*args, **kwargs)

    def make_train_function(self, force=False):
        with self._compiled_whole():
            return super().make_train_function(force)

    def make_test_function(self, force=False):
        with self._compiled_whole():
            return super().make_test_function(force)

    def make_predict_function(self, force=False):
        if not self.jit_compile or compiles_whole_models():
            return super().make_predict_function(force)
        if self.predict_function is None or force:
            forward = compiled_forward(self)

            def predict(batches):
                inputs, *_ = keras.utils.unpack_x_y_sample_weight(batches[0])
                return forward(inputs)

            self.predict_function = predict
        return self.predict_function

    @contextlib.contextmanager
    def _compiled_whole(self):
        """Where functions are compiled as a whole, or not at all."""
        jit_compile = self.jit_compile
        self.jit_compile = jit_compile and compiles_whole_models()
        try:
            yield
        finally:
            self.jit_compile = jit_compile

    @property
    def reduction_factor(self):
        """Ratio of tokens to routed tokens, a number or one per block.

        Setting it takes effect from the next step of `fit` or `predict` on, of
        the backbone and of the KerasHub tasks made from it. For another model
        around the backbone use `keras_coda.set_reduction_factor`.
        """
        blocks = backbone_of(self).conditional_blocks
        values = [block.reduction_factor for block in blocks]
        return values[0] if len(set(values)) == 1 else values

    @reduction_factor.setter
    def reduction_factor(self, value):
        backbone = backbone_of(self)
        set_reduction_factor(backbone, value)
        backbone.forget_compiled()

    @property
    def attention(self):
        """`"k_to_all"` or `"k_to_k"`; setting it takes effect likewise."""
        return backbone_of(self).conditional_blocks[0].attention

    @attention.setter
    def attention(self, value):
        backbone = backbone_of(self)
        validate_choice("attention", value, ATTENTIONS)
        for block in backbone.conditional_blocks:
            block.attention = value
        backbone.forget_compiled()

    def trainable_summary(self, print_fn=None):
        """Prints how many parameters are trained, part by part.

        Args:
            print_fn: optional callable that takes the text. Defaults to
                `print`.

        Returns:
            A `TrainableSummary` with the fields `trainable`, `frozen`,
            `percentage` (of all parameters that are trainable) and `parts`, a
            dict of the trainable counts.
        """
        return trainable_summary(self, print_fn)

    def quantize(self, mode=None, config=None, filters=None):
        """Quantizes the frozen weights, in place.

        Adapters, routers, layer normalisations, LoRA and a task's head stay in
        float and trainable, so the model can be trained, before or after. The
        dense model that was converted shares the frozen weights, and is
        quantized with it. docs/quantization.md says what is gained and lost.

        Args:
            mode: `"int8"` or `"int4"`.
            config: optional `keras.quantizers.QuantizationConfig`, which says
                how. Defaults to that of Keras for the mode.
            filters: optional regular expression, list of them, or function of
                a layer that returns a bool. Only layers whose name matches are
                quantized. Defaults to `None`, all layers.

        Raises:
            ValueError: if `mode` is something else, or if nothing is left to
                quantize.
        """
        quantize_frozen(backbone_of(self), mode, config, filters)

    def merge_lora(self):
        """Makes a model whose projections hold what LoRA learned.

        It computes the same with fewer operations, for inference. Adapters and
        routers stay as they are.

        Returns:
            A model of the same class with `lora_rank=None` and weights of its
            own; this model is left as it is.

        Raises:
            ValueError: if the model was converted without `lora_rank`.
        """
        if not lora_layers(self):
            raise ValueError(
                "The model has no LoRA to merge; it was converted without "
                "`lora_rank`."
            )
        config = self.get_config()
        if "lora_rank" in config:
            config["lora_rank"] = None
        else:
            config["backbone"]["config"]["lora_rank"] = None
        merged = type(self).from_config(config)
        with tempfile.TemporaryDirectory() as folder:
            # Keras merges LoRA in every file of weights.
            path = os.path.join(folder, "merged.weights.h5")
            self.save_weights(path)
            merged.load_weights(path)
        return merged

    def save_adapter(self, path):
        """Saves what was trained, without the frozen backbone.

        The file holds the adapters, routers and layer normalisations, a task's
        head, and the settings of the conversion. It is written whole or not at
        all, and can be loaded under any backend.

        Args:
            path: str or path. The file to write, by convention with the
                extension `.safetensors`.
        """
        adapter_file.save_adapter(self, path)

    def load_adapter(self, path):
        """Loads a file of `save_adapter`, reduction factors included.

        The model stays compiled and goes on with the new weights, so many
        tasks can take turns on one frozen backbone.

        Args:
            path: str or path. A file that `save_adapter` wrote for the same
                backbone, settings and head.

        Raises:
            ValueError: if the file is not an adapter file, or was saved from
                another backbone or other settings; the message names the first
                mismatch and the model is left as it was.
            FileNotFoundError: if there is no such file.
        """
        adapter_file.load_adapter(self, path)


def _fixed_setting(name):
    """A property of a setting that a model is converted with."""

    def get(self):
        backbone = backbone_of(self)
        # EdRec has an `epsilon` of its own.
        return vars(backbone).get(name, getattr(backbone.settings, name))

    def refuse(self, value):
        raise AttributeError(
            f"`{name}` is settled when a model is converted: convert the dense "
            f"model again, `keras_coda.coda_wrap(model, {name}=...)`. "
            f"Received: {name}={value!r}"
        )

    return property(get, refuse, doc="See `keras_coda.coda_wrap`.")


for _name in field_names(Settings):
    if not hasattr(CodaModel, _name):
        setattr(CodaModel, _name, _fixed_setting(_name))


def router_fingerprints(backbone):
    """A number for each router's weights, to see whether they changed."""
    return tuple(
        float(np.sum(np.abs(keras.ops.convert_to_numpy(block.router.kernel))))
        for block in backbone.conditional_blocks
        if block.router.kernel is not None
    )


def validate_converted(name, model):
    """Raises a `TypeError` if `model` is not what `coda_wrap` made."""
    if not isinstance(backbone_of(model), CodaModel):
        raise TypeError(
            f"`{name}` must be a model that `keras_coda.coda_wrap` made. "
            f"Received: {name}={model!r}"
        )


def _restart_lora(layer):
    """Makes LoRA trainable again after Keras has merged it into a file.

    Both matrices are zero then, and so would all gradients be.
    """
    kernels = lora_weights(layer)
    if not any(np.any(keras.ops.convert_to_numpy(k)) for k in kernels):
        # Keras's own initializer of the first matrix.
        initializer = keras.initializers.HeUniform()
        kernels[0].assign(initializer(kernels[0].shape, kernels[0].dtype))
