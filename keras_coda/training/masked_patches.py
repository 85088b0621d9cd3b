import keras
import numpy as np

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.inputs import preprocess
from keras_coda.training.observation import front_of


class MaskedPatchesObjective:
    """The pixels of masked patches, for `pretrain`."""

    def __init__(
        self, coda, task_cls, tokenizer, sequence_length, mask_rate, rng
    ):
        self.coda, self.front = coda, front_of(coda)
        backbone = backbone_of(coda)
        self.patch_size = backbone.patch_size
        if isinstance(self.patch_size, int):
            self.patch_size = (self.patch_size, self.patch_size)
        self.mask_rate = mask_rate or 0.6
        self.rng = rng
        self.channels_axis = channels_axis(backbone)
        sizes = list(backbone.image_shape)
        channels = sizes.pop(self.channels_axis)
        height, width = sizes
        rows, columns = (
            height // self.patch_size[0],
            width // self.patch_size[1],
        )
        # Without the class token, if there is one.
        tokens = backbone.output[:, -rows * columns :]
        pixels = keras.layers.Dense(
            self.patch_size[0] * self.patch_size[1] * channels,
            dtype="float32",
            name="pixels",
        )(tokens)
        self.model = keras.Model(backbone.input, pixels)
        self.loss = keras.losses.MeanSquaredError(
            reduction="mean_with_sample_weight"
        )
        self.metrics = []

    @staticmethod
    def default_sequence_length(backbone, x):
        """None: images have one size."""

    def make_batch(self, images):
        """Makes `(x, y, sample_weight)` from a list of images."""
        images = preprocess(self.coda, np.stack(images).astype("float32"))
        if self.front is not None:
            images = self.front.predict_on_batch(images).astype("float32")
        images = np.moveaxis(images, self.channels_axis, -1)
        patches = to_patches(images, self.patch_size)
        batch_size, rows, columns, _ = patches.shape
        num_masked = max(1, round(self.mask_rate * rows * columns))
        order = np.argsort(self.rng.random((batch_size, rows * columns)))
        masked = (order < num_masked).reshape((batch_size, rows, columns))
        mean = patches.mean(axis=-1, keepdims=True)
        deviation = patches.std(axis=-1, keepdims=True)
        targets = (patches - mean) / (deviation + 1e-3)
        # The mean colour of the image hides a patch.
        hidden = patches.mean(axis=(1, 2), keepdims=True)
        hidden = np.broadcast_to(hidden, patches.shape)
        shown = np.where(masked[..., None], hidden, patches)
        images = from_patches(shown, self.patch_size)
        return (
            np.moveaxis(images, -1, self.channels_axis),
            targets.reshape((batch_size, rows * columns, -1)),
            masked.reshape((batch_size, -1)).astype("float32"),
        )


def channels_axis(backbone):
    """The axis of the channels, of an image or of many."""
    data_format = getattr(backbone, "data_format", "channels_last")
    return -3 if data_format == "channels_first" else -1


def to_patches(images, patch_size):
    """Cuts images into patches.

    Args:
        images: array of shape `(batch_size, height, width, channels)`.
        patch_size: tuple, height and width of a patch, which divide those of
            the images.

    Returns:
        Array of shape `(batch_size, rows, columns, height of a patch * width
        of a patch * channels)`.
    """
    batch_size, height, width, channels = images.shape
    patch_height, patch_width = patch_size
    rows, columns = height // patch_height, width // patch_width
    patches = images.reshape(
        (batch_size, rows, patch_height, columns, patch_width, channels)
    )
    return patches.swapaxes(2, 3).reshape((batch_size, rows, columns, -1))


def from_patches(patches, patch_size):
    """Puts together what `to_patches` cut."""
    batch_size, rows, columns, _ = patches.shape
    patch_height, patch_width = patch_size
    images = patches.reshape(
        (batch_size, rows, columns, patch_height, patch_width, -1)
    )
    return images.swapaxes(2, 3).reshape(
        (batch_size, rows * patch_height, columns * patch_width, -1)
    )
