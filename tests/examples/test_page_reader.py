"""The reader of pages: its data, its padding, and its blocks when routed."""

import keras
import numpy as np
import page_data
import page_reader
import pytest

import keras_coda
from tests.backend_helpers import same_on_every_backend
from tests.backend_helpers import slow_to_compile


@pytest.fixture(scope="module")
def reader():
    keras.utils.set_random_seed(0)
    return page_reader.make_reader(
        page_reader.PageBackbone(
            num_layers=1, hidden_dim=32, num_heads=2, intermediate_dim=32
        )
    )


def make_batch(**arguments):
    rng = np.random.default_rng(0)
    return page_data.make_batch(rng, 3, num_patches=256, **arguments)


# === Pages ===


@same_on_every_backend
def test_patches_are_the_page():
    page = page_data.make_page(np.random.default_rng(0), 256)
    assert page.image.shape in [(192, 320), (256, 256), (320, 192)]
    inputs, _ = make_batch()
    rng = np.random.default_rng(0)
    rng.spawn(1)
    for index in range(3):
        page = page_data.make_page(rng, 256)
        picture = np.zeros_like(page.image)
        for patch, row, column, real in zip(
            *(inputs[name][index] for name in ("patches", "rows", "columns")),
            inputs["padding_mask"][index],
        ):
            if real:
                picture[
                    16 * row : 16 * row + 16, 16 * column : 16 * column + 16
                ] = patch.reshape(16, 16)
        np.testing.assert_array_equal(picture, page.image)


@same_on_every_backend
def test_the_answer_stands_beside_the_label():
    inputs, targets = make_batch(num_questions=4, hint="words")
    _, lines = make_batch(num_questions=4)
    for index in range(3):
        words, values = targets["hints"][index], lines["hints"][index]
        rows = inputs["rows"][index]
        for label, value in zip(
            inputs["question"][index], targets["answers"][index]
        ):
            assert page_data.WORDS[1 + label] == page_data.LABELS[label]
            assert page_data.WORDS[value] in page_data.VALUES
            (row,) = set(rows[words == 1 + label])
            on_row = (rows == row) & (words > 0)
            assert set(words[on_row]) == {1 + label, value}
            assert set(values[on_row]) == {value}


@same_on_every_backend
@pytest.mark.parametrize("rule", ["text", "contrast", "random"])
def test_kept_patches_are_of_the_same_pages(rule):
    inputs, targets = make_batch()
    kept, kept_targets = make_batch(num_shown=64, rule=rule)
    np.testing.assert_array_equal(kept["question"], inputs["question"])
    np.testing.assert_array_equal(kept_targets["answers"], targets["answers"])
    assert kept["padding_mask"].all()
    for index in range(3):
        real = inputs["padding_mask"][index]
        patches = {
            (row, column): patch
            for row, column, patch in zip(
                *(
                    inputs[name][index][real]
                    for name in ("rows", "columns", "patches")
                )
            )
        }
        places = list(zip(kept["rows"][index], kept["columns"][index]))
        assert len(set(places)) == 64
        for place, patch in zip(places, kept["patches"][index]):
            np.testing.assert_array_equal(patch, patches[place])
    if rule == "text":
        text = [np.sum(x["hints"] > 0) for x in (targets, kept_targets)]
        assert text[0] == text[1] > 0


@same_on_every_backend
def test_shrunk_pages_have_fewer_patches():
    inputs, targets = make_batch(shrunk=2)
    assert inputs["patches"].shape == (3, 64, 256)
    assert inputs["padding_mask"].sum(axis=1).max() <= 64
    assert np.all(inputs["rows"] < 10)
    assert np.all(np.sum(targets["hints"] > 0, axis=1) > 0)


# === The model ===


def with_padding(inputs):
    """The same pages, with eight patches of padding that hold anything."""
    rng = np.random.default_rng(1)
    padded = {"question": inputs["question"]}
    for name in ("patches", "rows", "columns"):
        array = inputs[name]
        shape = (3, 8, *array.shape[2:])
        more = rng.integers(0, 20, shape).astype(array.dtype)
        padded[name] = np.concatenate([array, more], axis=1)
    mask = inputs["padding_mask"]
    padded["padding_mask"] = np.pad(mask, [(0, 0), (0, 8)])
    return padded


def test_padding_changes_nothing(reader):
    inputs, _ = make_batch(num_shown=40)
    np.testing.assert_allclose(
        reader.predict(with_padding(inputs), verbose=0),
        reader.predict(inputs, verbose=0),
        atol=1e-5,
    )


@slow_to_compile
def test_routes_as_dense_at_1(reader):
    inputs, _ = make_batch(num_shown=40)
    inputs = with_padding(inputs)
    expected = reader.predict(inputs, verbose=0)
    coda = keras_coda.coda_wrap(reader, reduction_factor=1)
    np.testing.assert_allclose(
        coda.predict(inputs, verbose=0), expected, atol=1e-5
    )
    keras_coda.set_reduction_factor(coda, 4)
    routing = keras_coda.analysis.routing(coda, inputs)
    assert all(indices.shape == (3, 13) for indices in routing.indices)
    # The question, which the answer is read from, and no padding.
    assert all(np.all(np.any(i == 0, axis=1)) for i in routing.indices)
    assert all(np.all(indices < 41) for indices in routing.indices)
    assert keras_coda.analysis.flops(coda, 49).ratio > 1


@slow_to_compile
def test_script(capsys):
    page_reader.main(
        "--num-patches 64 --num-kept 36 --steps 2 --batch-size 2 "
        "--reduction-factors 2".split()
    )
    lines = capsys.readouterr().out.splitlines()
    printed = [line.split(":") for line in lines if line.endswith("%")]
    assert [name for name, _ in printed] == ["dense", "r = 2"]
