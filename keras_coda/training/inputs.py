"""Inputs of recipes without labels: texts, arrays or batches of them."""

import keras
import numpy as np
from keras import ops


def preprocess(model, x):
    """Inputs of a model, made by a task's preprocessor as `fit` makes them.

    Args:
        model: a task, or something else.
        x: texts; a tuple of texts for a task on pairs; a dict with texts for
            one that takes such; an array, of images say; or a
            `tf.data.Dataset` of batches of any of these, with or without
            labels. Anything else is returned as it is: a dict of arrays, which
            are inputs of the model already, and batches of other kinds.

    Raises:
        ValueError: if there are no inputs, or if `x` is text and `model` has no
            preprocessor.
    """
    validate_inputs(x)
    if getattr(model, "preprocessor", None) is None:
        if _is_text(x):
            raise ValueError(
                "`x` is text, and the model has no preprocessor that makes "
                "tokens of it. Pass the inputs of the backbone, a dict of "
                f"arrays. Received: x={str(x)[:60]}..."
            )
        return x
    if hasattr(x, "element_spec"):
        # As KerasHub does it. Elements that are tuples come as arguments.
        return x.map(lambda *batch: _preprocess_batch(model, batch))
    if _is_text(x) or hasattr(x, "shape"):
        return keras.tree.map_structure(
            ops.convert_to_numpy, _preprocess_batch(model, (x,))
        )
    return x


def _preprocess_batch(model, batch):
    """The inputs in a batch, `(x,)` or `(x, y)` or with weights too."""
    x, *labels = batch
    if isinstance(x, dict) and not _is_text(x):
        return x
    if isinstance(x, tuple) and not labels:
        # KerasHub would take the second texts for them.
        labels = [x[0]]
    outputs = model.preprocess_samples(x, *labels)
    return keras.utils.unpack_x_y_sample_weight(outputs)[0]


def validate_inputs(x):
    """Raises an error if there are no inputs, or what cannot hold many."""
    has_items = hasattr(x, "__iter__") or hasattr(x, "__getitem__")
    if isinstance(x, str) or not has_items:
        raise TypeError(
            "`x` must hold many inputs: a list of texts, an array, a dict of "
            f"arrays, or batches. Received: x={x!r} of type {type(x).__name__}"
        )
    if _is_empty(x):
        raise ValueError("`x` must hold at least one input. Received none.")


def _is_empty(x):
    if not isinstance(x, (dict, list, tuple)):
        return tuple(getattr(x, "shape", ()))[:1] == (0,)
    leaves = x.values() if isinstance(x, dict) else x
    return len(leaves) == 0 or any(map(_is_empty, leaves))


def _is_text(x):
    if isinstance(x, dict):
        # Images may come with texts.
        return any(map(_is_text, x.values()))
    if isinstance(x, (list, tuple)):
        return len(x) > 0 and all(isinstance(v, str) or _is_text(v) for v in x)
    dtype = getattr(x, "dtype", None)
    # NumPy's, and TensorFlow's.
    is_numpy = getattr(dtype, "kind", None) in ("U", "S", "O")
    return is_numpy or getattr(dtype, "name", None) == "string"


def make_batches(model, x, batch_size):
    """A list of batches of inputs, as tensors.

    Args:
        model: a converted model, for its preprocessor.
        x: what `preprocess` takes; a list of arrays for a model with a list of
            inputs; or an iterable of batches of any of these, with or without
            labels.
        batch_size: int. For arrays and texts.
    """
    is_whole = isinstance(x, dict) or hasattr(x, "shape")
    if is_whole or _is_text(x) or _is_list_of_inputs(model, x):
        x = preprocess(model, x)
        size = _num_rows(x)
        x = [
            keras.tree.map_structure(lambda v: v[start : start + batch_size], x)
            for start in range(0, size, batch_size)
        ]
    else:
        validate_inputs(x)
        _validate_end(x)
        x = (preprocess(model, _without_labels(batch)) for batch in x)
    batches = [
        keras.tree.map_structure(ops.convert_to_tensor, batch) for batch in x
    ]
    validate_inputs(batches)
    return batches


def _is_list_of_inputs(model, x):
    """Whether `x` has an array for each of several inputs of a model."""
    inputs = getattr(model, "input", None)
    if not isinstance(inputs, list) or not isinstance(x, (list, tuple)):
        return False
    return len(x) == len(inputs) and all(hasattr(v, "shape") for v in x)


def _validate_end(x):
    """Raises a `ValueError` for a dataset that is repeated for ever."""
    # Of a `tf.data.Dataset` and a `keras.utils.PyDataset`.
    cardinality = getattr(x, "cardinality", lambda: 0)
    num_batches = getattr(x, "num_batches", 0)
    if int(cardinality()) == -1 or num_batches is None:
        raise ValueError(
            "`x` must have an end: all of its batches are read. Take some, "
            f"`x.take(16)` of a `tf.data.Dataset`. Received: x={x!r}"
        )


def _num_rows(x):
    """Of an array, or of each of several."""
    shapes = [tuple(getattr(v, "shape", ())) for v in keras.tree.flatten(x)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) > 1 or () in sizes:
        raise ValueError(
            "`x` must hold arrays, with a row for each input in each of them. "
            f"Received: arrays of shapes {shapes}"
        )
    ((size,),) = sizes
    return size


def _without_labels(batch):
    """The inputs in a batch that may be `(x, y)`, as `fit` finds them."""
    if isinstance(batch, list) and all(isinstance(x, str) for x in batch):
        return batch
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def hold_back(inputs, size):
    """The last batches: `size` inputs, but a quarter at most."""
    last = inputs[::-1][: max(len(inputs) // 4, 1)]
    return inputs[-count_batches(last, size) :]


def count_batches(inputs, size):
    """How many of the first batches hold `size` inputs together."""
    count = 0
    for number, batch in enumerate(inputs, start=1):
        count += len(keras.tree.flatten(batch)[0])
        if count >= size:
            return number
    return len(inputs)


class Batches(keras.utils.PyDataset):
    """A list of batches, for `fit`."""

    def __init__(self, inputs):
        super().__init__()
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        # In a tuple, which `fit` reads as inputs without labels.
        return (
            keras.tree.map_structure(ops.convert_to_numpy, self.inputs[index]),
        )


class ShuffledBatches(keras.utils.PyDataset):
    """Shuffled batches of raw inputs, made anew each epoch."""

    def __init__(self, x, make_batch, batch_size, seed):
        super().__init__()
        self.x = x
        self.make_batch = make_batch
        self.batch_size = batch_size
        self.rng = np.random.default_rng(seed)
        self.order = self.rng.permutation(len(x))

    def __len__(self):
        return -(-len(self.x) // self.batch_size)

    def __getitem__(self, index):
        start = index * self.batch_size
        chosen = self.order[start : start + self.batch_size]
        return self.make_batch([self.x[i] for i in chosen])

    def on_epoch_end(self):
        self.order = self.rng.permutation(len(self.x))
