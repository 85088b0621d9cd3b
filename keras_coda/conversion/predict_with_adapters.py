"""Batches whose rows are for different adapters."""

import keras
import numpy as np

from keras_coda.validation import validate_positive_integer


def predict_with_adapters(models, inputs, adapter_ids, batch_size=32):
    """Predicts each row of a batch with the adapter that it is for.

    The rows of each adapter go through its model together: a forward pass for
    each adapter in the batch, or more for one that has more than `batch_size`
    rows. Rows are repeated until their number is a power of two, or
    `batch_size`, so that few shapes are compiled. They do not change each
    other's outputs.

    Args:
        models: dict from name to a converted model. Those that `coda_wrap`
            makes of one dense model share its frozen weights, so that each
            takes the memory of its adapter alone.
        inputs: what `models[name].predict` takes: an array, a dict of arrays,
            or a list of texts for tasks with a preprocessor, with b rows; a
            tuple of two such lists for tasks on pairs of texts.
        adapter_ids: sequence of b keys of `models`.
        batch_size: int. The most rows in a forward pass. Defaults to `32`.

    Returns:
        What `predict` returns, with b rows in the order of `inputs`.

    Raises:
        ValueError: if there is no model of a name, if the number of
            `adapter_ids` is not that of the rows, or there are none, or if the
            models' outputs differ in shape.

    Example:

    >>> dense = keras_hub.models.ViTBackbone(
    ...     image_shape=(8, 8, 3),
    ...     patch_size=4,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     mlp_dim=16,
    ... )
    >>> models = {
    ...     "birds": keras_coda.coda_wrap(dense, reduction_factor=1),
    ...     "signs": keras_coda.coda_wrap(dense, reduction_factor=1),
    ... }
    >>> images = np.random.normal(size=(3, 8, 8, 3))
    >>> outputs = keras_coda.predict_with_adapters(
    ...     models, images, adapter_ids=["birds", "signs", "birds"]
    ... )
    >>> outputs.shape
    (3, 5, 8)
    """
    validate_positive_integer("batch_size", batch_size)
    adapter_ids = list(adapter_ids)
    unknown = sorted({str(name) for name in adapter_ids if name not in models})
    if unknown:
        raise ValueError(
            f"`adapter_ids` must be among {sorted(map(str, models))}, the keys "
            f"of `models`. Received: {', '.join(unknown)}"
        )
    if isinstance(inputs, list):
        inputs = np.array(inputs)
    elif isinstance(inputs, tuple):
        inputs = tuple(map(np.array, inputs))
    num_rows = len(keras.tree.flatten(inputs)[0])
    if not adapter_ids or len(adapter_ids) != num_rows:
        raise ValueError(
            "`adapter_ids` must name a model for each row of `inputs`, and "
            f"there must be some. Received: {len(adapter_ids)} names, "
            f"{num_rows} rows"
        )
    # A model may be replaced in another thread meanwhile.
    models = dict(models)
    outputs, order = [], []
    for name in dict.fromkeys(adapter_ids):
        rows = [row for row, key in enumerate(adapter_ids) if key == name]
        for start in range(0, len(rows), batch_size):
            chosen = rows[start : start + batch_size]
            outputs.append(_predict(models[name], inputs, chosen, batch_size))
            order += chosen
    shapes = {
        str([x.shape[1:] for x in keras.tree.flatten(output)])
        for output in outputs
    }
    if len(shapes) > 1:
        raise ValueError(
            "The outputs of all `models` must have the same shape, to be rows "
            "of one array: call those with other heads apart. Received rows of "
            f"the shapes {' and '.join(sorted(shapes))}"
        )
    places = np.argsort(order)
    return keras.tree.map_structure(
        lambda *parts: np.concatenate(parts)[places], *outputs
    )


def _predict(model, inputs, rows, batch_size):
    """Predicts some rows, in a batch of one of a few sizes."""
    size = min(1 << (len(rows) - 1).bit_length(), batch_size)
    padded = np.array(rows + rows[-1:] * (size - len(rows)))
    batch = keras.tree.map_structure(lambda x: np.asarray(x)[padded], inputs)
    outputs = model.predict(batch, batch_size=size, verbose=0)
    return keras.tree.map_structure(lambda x: x[: len(rows)], outputs)
