import numpy as np
import pytest

from keras_coda.training import corrupt_spans

SENTINEL = 99


def restore(inputs, targets):
    """Puts the hidden spans of the targets back in the inputs."""
    spans, current = {}, None
    for token in targets[:-1]:
        if token > 90:
            current = spans.setdefault(token, [])
        else:
            current.append(token)
    restored = []
    for token in inputs[:-1]:
        restored += spans[token] if token > 90 else [token]
    return restored


@pytest.mark.parametrize("length", [2, 3, 10, 50])
@pytest.mark.parametrize("noise_density", [0.15, 0.5, 0.9])
def test_nothing_is_lost(length, noise_density):
    token_ids = np.arange(10, 10 + length)
    for seed in range(20):
        inputs, targets = corrupt_spans(
            token_ids, SENTINEL, noise_density=noise_density, seed=seed
        )
        assert inputs.dtype == targets.dtype == np.int32
        assert inputs[-1] == targets[-1] == 1
        assert restore(inputs, targets) == list(token_ids)
        # Sentinels count down, in both in the same order.
        sentinels = [token for token in inputs if token > 90]
        assert sentinels == [SENTINEL - i for i in range(len(sentinels))]
        assert sentinels == [token for token in targets if token > 90]
        # Spans are never adjacent, and the first token is shown.
        assert inputs[0] == 10


def test_hand_made_cases():
    # Two tokens: one is shown, one hidden.
    inputs, targets = corrupt_spans([5, 6], SENTINEL)
    assert list(inputs) == [5, 99, 1]
    assert list(targets) == [99, 6, 1]
    # Half of four tokens in spans of one: each second token.
    inputs, targets = corrupt_spans(
        [5, 6, 7, 8], SENTINEL, noise_density=0.5, mean_span_length=1
    )
    assert list(inputs) == [5, 99, 7, 98, 1]
    assert list(targets) == [99, 6, 98, 8, 1]
    # Three quarters in one span.
    inputs, targets = corrupt_spans(
        [5, 6, 7, 8],
        SENTINEL,
        end_token_id=2,
        noise_density=0.75,
        mean_span_length=3,
    )
    assert list(inputs) == [5, 99, 2]
    assert list(targets) == [99, 6, 7, 8, 2]


def test_shares():
    token_ids = np.arange(200) % 80
    generator = np.random.default_rng(0)
    lengths, starts = [], []
    for _ in range(50):
        inputs, targets = corrupt_spans(token_ids, 400, seed=generator)
        assert np.sum(targets < 80) - 1 == 30
        assert np.sum(inputs > 80) == 10
        positions = np.flatnonzero(targets > 80)
        lengths += list(np.diff([*positions, len(targets) - 1]) - 1)
        starts.append(np.argmax(inputs > 80))
    assert np.mean(lengths) == pytest.approx(3.0)
    assert np.std(lengths) > 1 and np.std(starts) > 1


def test_seed():
    token_ids = np.arange(50)
    first, second, third = (
        corrupt_spans(token_ids, SENTINEL, seed=seed)[0] for seed in (1, 1, 2)
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ({"token_ids": [1]}, "at least 2 tokens.*\\(1,\\)"),
        ({"token_ids": [[1, 2]]}, "one sequence"),
        ({"noise_density": 0.0}, "noise_density=0.0"),
        ({"mean_span_length": 0.5}, "mean_span_length=0.5"),
        ({"first_sentinel_id": -1}, "`first_sentinel_id` must be"),
        (
            {"first_sentinel_id": 1, "noise_density": 0.5},
            "need 3 sentinels",
        ),
    ],
)
def test_bad_arguments(arguments, match):
    arguments = {
        "token_ids": np.arange(20),
        "first_sentinel_id": SENTINEL,
        **arguments,
    }
    with pytest.raises(ValueError, match=match):
        corrupt_spans(**arguments)
