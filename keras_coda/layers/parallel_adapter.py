import keras
from keras import ops

from keras_coda.layers.dense import add_dense
from keras_coda.layers.dense import call_dense
from keras_coda.validation import validate_finite_number
from keras_coda.validation import validate_positive_integer


class FloatDense(keras.layers.Dense):
    """A dense layer that is trained when the model around it is quantized.

    Keras quantizes none of the subclasses of its layers.
    """


@keras.saving.register_keras_serializable(package="keras_coda")
class ParallelAdapter(keras.layers.Layer):
    """A small bottleneck that runs beside a frozen Transformer block.

    `outputs = scale * up(activation(down(inputs)))`. The up projection starts
    at zero, so a fresh adapter adds nothing and the model it is put beside
    starts out as it was pretrained. Each token is treated alone, so padding
    cannot reach another token; the Keras mask is passed on.

    Args:
        adapter_dim: int >= 1. Width of the bottleneck. Defaults to `64`.
        activation: a Keras activation. Defaults to `"relu"`.
        scale: float. Factor on the output. Defaults to `1.0`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch_size, n, hidden_dim)`.

    Returns:
        Tensor of shape `(batch_size, n, hidden_dim)`.

    Raises:
        ValueError: if `adapter_dim` is below 1, or `scale` not finite.
        TypeError: if `adapter_dim` is not an integer, or `scale` no number.

    Example:

    >>> adapter = keras_coda.layers.ParallelAdapter(adapter_dim=16)
    >>> outputs = keras.ops.convert_to_numpy(adapter(np.ones((2, 5, 32))))
    >>> print(outputs.shape, outputs.max())
    (2, 5, 32) 0.0

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), section 3.1;
        [He et al., 2022](https://arxiv.org/abs/2110.04366).
    """

    def __init__(self, adapter_dim=64, activation="relu", scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.adapter_dim = validate_positive_integer("adapter_dim", adapter_dim)
        self.activation = keras.activations.get(activation)
        self.scale = validate_finite_number("scale", scale)
        self.supports_masking = True

    def build(self, inputs_shape):
        self.down = FloatDense(
            self.adapter_dim,
            activation=self.activation,
            kernel_initializer="he_uniform",
            dtype=self.dtype_policy,
            name="down",
        )
        self.down.build(inputs_shape)
        self.up = FloatDense(
            inputs_shape[-1],
            kernel_initializer="zeros",
            dtype=self.dtype_policy,
            name="up",
        )
        self.up.build((*inputs_shape[:-1], self.adapter_dim))

    def call(self, inputs):
        outputs = call_dense(self.up, call_dense(self.down, inputs))
        if self.scale == 1:
            return outputs
        return outputs * ops.cast(self.scale, outputs.dtype)

    def add_to(self, residual, inputs):
        """`residual + adapter(inputs)`, a tensor that nothing else holds."""
        hidden = call_dense(self.down, inputs)
        return add_dense(residual, self.up, hidden, self.scale)

    def adapt(self, outputs, inputs):
        """What a layer that returned `outputs` for `inputs` now returns."""
        return self.add_to(outputs, inputs)

    def compute_output_shape(self, inputs_shape):
        return inputs_shape

    def get_config(self):
        config = super().get_config()
        config.update(
            {
                "adapter_dim": self.adapter_dim,
                "activation": keras.activations.serialize(self.activation),
                "scale": self.scale,
            }
        )
        return config
