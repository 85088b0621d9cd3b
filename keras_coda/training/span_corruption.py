import numpy as np

from keras_coda.layers.validation import validate_non_negative_integer


def corrupt_spans(
    token_ids,
    first_sentinel_id,
    end_token_id=1,
    noise_density=0.15,
    mean_span_length=3.0,
    seed=None,
):
    """Hides random spans of tokens, for T5 to restore them.

    T5's pretraining objective. Each hidden span is replaced by one sentinel
    token; the targets are the sentinels, each followed by what it hides, and
    the end token. With "Thank you for inviting me to your party last week":

    - inputs: `Thank you <0> me to your party <1> week`
    - targets: `<0> for inviting <1> last <end>`

    Plain NumPy on one sequence, for `map` of a tf.data (by way of
    `tf.numpy_function`) or grain pipeline. The token ids of a sequence without
    padding, start or end token are expected.

    Args:
        token_ids: int array of shape `(n,)`, n >= 2.
        first_sentinel_id: int. The id of the first sentinel; the following
            ones count down from it, as in T5's vocabulary.
        end_token_id: int. Ends inputs and targets. Defaults to `1`, T5's.
        noise_density: float in (0, 1). Share of the tokens to hide. Defaults
            to `0.15`.
        mean_span_length: float >= 1. Mean number of tokens in a hidden span.
            Defaults to `3.0`.
        seed: optional int, or a `numpy.random.Generator`.

    Returns:
        A tuple `(inputs, targets)` of int32 arrays. Together they hold each
        token once, each sentinel twice and two end tokens.

    Raises:
        ValueError: if `token_ids` is not one sequence of at least 2 tokens, if
            an argument is out of range, or if the sentinels do not suffice.

    Example:

    >>> inputs, targets = keras_coda.training.corrupt_spans(
    ...     np.arange(10, 22), first_sentinel_id=99, seed=0
    ... )
    >>> len(inputs) + len(targets) == 12 + 2 * 1 + 2
    True

    Reference:
        [Raffel et al., 2020](https://arxiv.org/abs/1910.10683), section 3.1.4.
    """
    token_ids = np.asarray(token_ids, dtype="int32")
    _validate(token_ids, first_sentinel_id, noise_density, mean_span_length)
    generator = np.random.default_rng(seed)
    length = len(token_ids)
    num_hidden = min(max(round(length * noise_density), 1), length - 1)
    num_spans = max(round(num_hidden / mean_span_length), 1)
    num_spans = min(num_spans, num_hidden, length - num_hidden)
    if num_spans > first_sentinel_id + 1:
        raise ValueError(
            f"{num_spans} spans need {num_spans} sentinels, which count down "
            "from `first_sentinel_id`. Received: "
            f"first_sentinel_id={first_sentinel_id}"
        )
    hidden_lengths = _random_partition(num_hidden, num_spans, generator)
    shown_lengths = _random_partition(length - num_hidden, num_spans, generator)
    inputs, targets, start = [], [], 0
    for span, (shown, hidden) in enumerate(zip(shown_lengths, hidden_lengths)):
        sentinel = [first_sentinel_id - span]
        middle, end = start + shown, start + shown + hidden
        inputs += [token_ids[start:middle], sentinel]
        targets += [sentinel, token_ids[middle:end]]
        start = end
    inputs.append([end_token_id])
    targets.append([end_token_id])
    return (
        np.concatenate(inputs).astype("int32"),
        np.concatenate(targets).astype("int32"),
    )


def _random_partition(total, num_parts, generator):
    """`num_parts` random positive integers that sum to `total`."""
    cuts = generator.choice(np.arange(1, total), num_parts - 1, replace=False)
    return np.diff(np.concatenate([[0], np.sort(cuts), [total]]))


def _validate(token_ids, first_sentinel_id, noise_density, mean_span_length):
    if token_ids.ndim != 1 or len(token_ids) < 2:
        raise ValueError(
            "`token_ids` must be one sequence of at least 2 tokens, an array "
            f"of shape (n,). Received: token_ids.shape={token_ids.shape}"
        )
    validate_non_negative_integer("first_sentinel_id", first_sentinel_id)
    if not 0 < noise_density < 1:
        raise ValueError(
            "`noise_density` must lie between 0 and 1: the share of tokens to "
            f"hide. Received: noise_density={noise_density}"
        )
    if not mean_span_length >= 1:
        raise ValueError(
            "`mean_span_length` must be at least 1 token. "
            f"Received: mean_span_length={mean_span_length}"
        )
