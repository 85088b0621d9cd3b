import keras

from keras_coda.layers.parallel_adapter import ParallelAdapter


@keras.saving.register_keras_serializable(package="keras_coda")
class SequentialAdapter(ParallelAdapter):
    """A small bottleneck behind a sublayer of a frozen Transformer block.

    `outputs = inputs + scale * up(activation(down(inputs)))`, where the inputs
    are what attention or feedforward network returned, before the residual
    connection. The up projection starts at zero, so a fresh adapter returns its
    inputs and the model it is put into starts out as it was pretrained. Each
    token is treated alone; the Keras mask is passed on.

    Args:
        adapter_dim: int >= 1. Width of the bottleneck. Defaults to `64`.
        activation: a Keras activation. Defaults to `"relu"`.
        scale: float. Factor on what is added. Defaults to `1.0`.
        **kwargs: see `keras.layers.Layer`.

    Call arguments:
        inputs: float tensor of shape `(batch_size, n, hidden_dim)`.

    Returns:
        Tensor of shape `(batch_size, n, hidden_dim)`.

    Raises:
        ValueError: if `adapter_dim` is below 1, or `scale` not finite.
        TypeError: if `adapter_dim` is not an integer, or `scale` no number.

    Example:

    >>> adapter = keras_coda.layers.SequentialAdapter(adapter_dim=16)
    >>> outputs = keras.ops.convert_to_numpy(adapter(np.ones((2, 5, 32))))
    >>> print(outputs.shape, outputs.min(), outputs.max())
    (2, 5, 32) 1.0 1.0

    Reference:
        [Houlsby et al., 2019](https://arxiv.org/abs/1902.00751), section 2.1,
        where both projections start near zero.
    """

    def call(self, inputs):
        return self.add_to(inputs, inputs)

    def adapt(self, outputs, inputs):
        return self(outputs)
