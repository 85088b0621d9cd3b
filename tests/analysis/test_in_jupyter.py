"""Rich shows by itself what is printed in a notebook, unless told not to."""

import pytest

import keras_coda
from keras_coda.analysis.highlight_routing import RoutedText
from tests.conversion.models import bert_backbone


@pytest.fixture(autouse=True)
def jupyter(monkeypatch):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)

    def display(*args):
        pytest.fail("Rich displayed what is only to be turned into text.")

    monkeypatch.setattr("rich.jupyter.display", display)


def test_tables_are_plain_text():
    coda = keras_coda.coda_wrap(bert_backbone())
    texts = [str(keras_coda.analysis.flops(coda, sequence_length=8))]
    coda.trainable_summary(texts.append)
    for text in texts:
        assert "total" in text and "\x1b" not in text


def test_routed_text_is_shown_once():
    text = RoutedText([["[CLS]", "film"]], [[1, 0]], num_blocks=1)
    assert "film" in text.html()
    assert repr(text) == "<RoutedText: 1 texts>"
