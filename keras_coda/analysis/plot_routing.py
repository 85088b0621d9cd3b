import numpy as np
from keras import ops

from keras_coda.analysis.figure import make_figure
from keras_coda.analysis.routing import routing_of_tensors
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.inputs import preprocess
from keras_coda.training.masked_patches import channels_axis

# The colour of left out patches, which neither black nor white images have.
LEFT_OUT = np.array([0.45, 0.6, 0.85])


def plot_routing(model, images, scale=2.0):
    """Draws which patches of images each block of a ViT routes.

    A row for each image: the image, then one picture for each block, in which
    patches fade into blue: those that the block leaves out nearly, the others
    the less, the more they weigh.

    Args:
        model: a converted ViT, a `keras_coda.CodaBackbone` or a task.
        images: array of shape `(batch_size, height, width, channels)`, as
            `predict` takes them. What the preprocessor of a task makes of them
            is drawn, stretched to the range of values of a picture.
        scale: float. Width and height of one picture, in inches. Defaults to
            `2.0`.

    Returns:
        A `matplotlib.figure.Figure`, to show or to `savefig`.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if the model's backbone has no patches.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=2,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=2)
    >>> images = np.random.uniform(size=(3, 8, 8, 3))
    >>> figure = keras_coda.analysis.plot_routing(coda, images)
    >>> len(figure.axes)
    9

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), figure 7.
    """
    backbone = backbone_of(model)
    patch_size = getattr(backbone, "patch_size", None)
    if patch_size is None:
        raise TypeError(
            "`model` must be a converted vision model, whose backbone has a "
            "`patch_size`. For text see "
            f"`keras_coda.analysis.highlight_routing`. Received: model={model}"
        )
    if isinstance(patch_size, int):
        patch_size = (patch_size, patch_size)
    images = ops.convert_to_numpy(preprocess(model, images))
    routed = routing_of_tensors(model, images)
    images = np.moveaxis(images, channels_axis(backbone), -1)
    weights = routed.weights_by_position()
    rows, columns = (
        size // patch for size, patch in zip(images.shape[1:3], patch_size)
    )
    # Without the class token, if there is one.
    weights = weights[:, :, -rows * columns :]
    visibility = weights.reshape(*weights.shape[:2], rows, columns)
    for axis, patch in zip((2, 3), patch_size):
        visibility = np.repeat(visibility, patch, axis=axis)

    num_images, num_blocks = weights.shape[:2]
    figure = make_figure(
        "plot_routing",
        figsize=(scale * (num_blocks + 1), scale * num_images),
    )
    axes = figure.subplots(num_images, num_blocks + 1, squeeze=False)
    for row, image in enumerate(images):
        picture = _to_picture(image[: rows * patch_size[0]])
        picture = picture[:, : columns * patch_size[1]]
        axes[row, 0].imshow(picture)
        for block in range(num_blocks):
            shown = 0.15 + 0.85 * visibility[row, block][..., None]
            axes[row, block + 1].imshow(
                shown * picture + (1 - shown) * LEFT_OUT
            )
    titles = ["image", *routed.names]
    for axis, title in zip(axes[0], titles):
        axis.set_title(title, fontsize="small")
    for axis in axes.flat:
        axis.set_axis_off()
    return figure


def _to_picture(image):
    """An RGB picture with values from 0 to 1."""
    low, high = image.min(), image.max()
    picture = (image - low) / max(high - low, 1e-6)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))
