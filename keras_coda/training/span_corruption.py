import numpy as np

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.token_objective import TokenObjective
from keras_coda.validation import validate_non_negative_integer


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
    num_hidden, num_spans = _count(length, noise_density, mean_span_length)
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


def _count(length, noise_density, mean_span_length):
    """The number of tokens to hide and of spans to hide them in."""
    num_hidden = min(max(round(length * noise_density), 1), length - 1)
    num_spans = max(round(num_hidden / mean_span_length), 1)
    return num_hidden, min(num_spans, num_hidden, length - num_hidden)


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


class SpanCorruptionObjective(TokenObjective):
    """Span corruption, for `pretrain`."""

    mean_span_length = 3.0

    def __init__(
        self, coda, task_cls, tokenizer, sequence_length, mask_rate, rng
    ):
        super().__init__(coda, task_cls, tokenizer, sequence_length)
        self.mask_rate = mask_rate or 0.15
        self.rng = rng
        backbone = backbone_of(coda)
        self.first_sentinel_id = _find_first_sentinel(self.tokenizer, backbone)
        self.sequence_length = sequence_length
        # Room for the longest inputs and targets, end tokens included.
        num_hidden, num_spans = _count(
            sequence_length, self.mask_rate, self.mean_span_length
        )
        self.input_length = sequence_length - num_hidden + num_spans + 1
        self.target_length = num_hidden + num_spans + 1

    def make_batch(self, texts):
        batch_size = len(texts)
        pad_id, end_id = (
            self.tokenizer.pad_token_id,
            self.tokenizer.end_token_id,
        )
        inputs = np.full((batch_size, self.input_length), pad_id, "int32")
        targets = np.full((batch_size, self.target_length), pad_id, "int32")
        for row, text in enumerate(texts):
            token_ids = np.asarray(self.tokenizer(text))[: self.sequence_length]
            if len(token_ids) < 2:
                # Nothing to hide; the loss leaves out a row of padding.
                continue
            shown, hidden = corrupt_spans(
                token_ids,
                self.first_sentinel_id,
                end_token_id=end_id,
                noise_density=self.mask_rate,
                mean_span_length=self.mean_span_length,
                seed=self.rng,
            )
            inputs[row, : len(shown)] = shown
            targets[row, : len(hidden)] = hidden
        # T5's decoder starts with padding and reads what it has to say next.
        decoder_inputs = np.pad(targets[:, :-1], [(0, 0), (1, 0)])
        is_target = targets != pad_id
        x = {
            "encoder_token_ids": inputs,
            "encoder_padding_mask": (inputs != pad_id).astype("int32"),
            "decoder_token_ids": decoder_inputs,
            "decoder_padding_mask": is_target.astype("int32"),
        }
        return x, targets, is_target.astype("float32")


def _find_first_sentinel(tokenizer, backbone):
    """The id of T5's `<extra_id_0>`."""
    vocabulary_size = tokenizer.vocabulary_size()
    name = "<extra_id_0>"
    for token_id in range(max(0, vocabulary_size - 200), vocabulary_size):
        if tokenizer.id_to_token(token_id) == name:
            return token_id
    # T5's vocabulary files end before its 100 sentinels.
    first_sentinel_id = vocabulary_size + 99
    if first_sentinel_id >= backbone.vocabulary_size:
        raise ValueError(
            f"The tokenizer has no {name!r}, and the backbone's embedding no "
            f"room for 100 sentinels: it has {backbone.vocabulary_size} rows, "
            f"the tokenizer {vocabulary_size} tokens. Span corruption needs a "
            "T5 vocabulary."
        )
    return first_sentinel_id
