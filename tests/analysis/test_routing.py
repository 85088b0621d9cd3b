import keras
import keras_hub
import numpy as np
import pytest
from keras import ops
from rich.console import Console

import keras_coda
from keras_coda.analysis.plot_routing import LEFT_OUT
from keras_coda.analysis.routing import Routing
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import LENGTHS
from tests.conversion.models import NUM_LAYERS
from tests.conversion.models import assert_close
from tests.conversion.models import bert_backbone
from tests.conversion.models import bert_inputs
from tests.conversion.models import channels_first_vit
from tests.conversion.models import predict
from tests.conversion.models import t5_backbone
from tests.conversion.models import t5_inputs
from tests.conversion.models import text_classifier
from tests.conversion.models import vit_backbone
from tests.conversion.models import vit_inputs


def test_first_k_is_what_it_says():
    coda = keras_coda.coda_wrap(
        bert_backbone(), reduction_factor=3, router="first_k"
    )
    routed = keras_coda.analysis.routing(coda, bert_inputs())
    assert routed.length == 12
    assert len(routed.names) == NUM_LAYERS
    for indices, weights in zip(routed.indices, routed.weights):
        assert np.array_equal(np.sort(indices), [[0, 1, 2, 3]] * len(LENGTHS))
        assert np.array_equal(weights, np.ones((len(LENGTHS), 4)))


def test_is_what_the_router_does():
    coda = keras_coda.coda_wrap(
        bert_backbone(), reduction_factor=3, epsilon=1.0
    )
    expected = predict(coda, bert_inputs())["sequence_output"]
    routed = keras_coda.analysis.routing(coda, bert_inputs())
    block = coda.conditional_blocks[0]
    hidden = keras.Model(coda.input, block.input[0]).predict(
        bert_inputs(), verbose=0
    )
    weights, indices = block.router(
        ops.convert_to_tensor(hidden), mask=bert_inputs()["padding_mask"]
    )
    assert np.array_equal(routed.indices[0], ops.convert_to_numpy(indices))
    np.testing.assert_allclose(
        routed.weights[0],
        ops.convert_to_numpy(ops.stop_gradient(weights)),
        atol=1e-5,
    )
    # The model is as it was.
    actual = predict(coda, bert_inputs())["sequence_output"]
    assert np.array_equal(actual, expected)


@pytest.mark.parametrize("reduction_factor", [1, [1, 4]])
def test_every_real_token_and_no_padding_at_one(reduction_factor):
    coda = keras_coda.coda_wrap(
        t5_backbone(), reduction_factor=reduction_factor
    )
    inputs = t5_inputs()
    weights = keras_coda.analysis.routing(coda, inputs).weights_by_position()
    assert np.array_equal(weights[:, 0], inputs["encoder_padding_mask"])


def test_positions_by_hand():
    routed = Routing(
        names=["a", "b"],
        weights=[np.array([[1.0, 0.5]]), np.array([[0.25]])],
        indices=[np.array([[3, 0]]), np.array([[3]])],
        length=4,
    )
    assert np.array_equal(
        routed.weights_by_position(),
        [[[0.5, 0, 0, 1], [0, 0, 0, 0.25]]],
    )
    assert np.array_equal(routed.num_blocks_routed(), [[1, 0, 0, 2]])


def test_model_without_conditional_blocks():
    with pytest.raises(ValueError, match="coda_wrap"):
        keras_coda.analysis.routing(bert_backbone(), bert_inputs())


@pytest.mark.parametrize(
    ("make_backbone", "axis"), [(vit_backbone, -1), (channels_first_vit, 1)]
)
def test_plot_fades_what_is_not_routed(make_backbone, axis):
    coda = keras_coda.coda_wrap(
        make_backbone(), reduction_factor=17 / 5, router="first_k"
    )
    images = np.ones_like(vit_inputs())
    images *= np.linspace(0.5, 1, IMAGE_SIZE)[:, None, None]
    figure = keras_coda.analysis.plot_routing(
        coda, np.moveaxis(images, -1, axis)
    )
    batch_size = len(vit_inputs())
    assert len(figure.axes) == batch_size * (NUM_LAYERS + 1)
    image, first_block = (
        axis.images[0].get_array() for axis in figure.axes[:2]
    )
    # 5 of 17 tokens: the class token and the first row of four patches.
    np.testing.assert_allclose(first_block[:4], image[:4], atol=1e-6)
    faded = 0.15 * image[4:] + 0.85 * LEFT_OUT
    np.testing.assert_allclose(first_block[4:], faded, atol=1e-6)


def test_plot_of_a_text_model():
    coda = keras_coda.coda_wrap(bert_backbone())
    with pytest.raises(TypeError, match="highlight_routing"):
        keras_coda.analysis.plot_routing(coda, vit_inputs())


@pytest.fixture
def text_model():
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] rout ##ing is <fast>".split()
    tokenizer = keras_hub.models.BertTokenizer(words)
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=9
    )
    coda = keras_coda.coda_wrap(
        bert_backbone(vocabulary_size=len(words)),
        reduction_factor=[3, 9],
        router="first_k",
    )
    return coda, preprocessor(["routing is fast"]), tokenizer


def test_highlighted_text(text_model):
    text = keras_coda.analysis.highlight_routing(*text_model)
    assert text.tokens == [["[CLS]", "rout", "##ing", "is", "[UNK]", "[SEP]"]]
    assert text.counts == [[2, 1, 1, 0, 0, 0]]
    console = Console(width=80, force_terminal=False)
    with console.capture() as capture:
        console.print(text)
    assert "[CLS] routing is [UNK] [SEP]" in capture.get()
    html = text.html()
    assert html == text._repr_html_()
    assert html.startswith("<pre") and html.count("background-color") >= 6
    # Dark blue where every block routed it.
    assert "background-color: #08306b" in html


def test_texts_and_images_of_tasks_are_preprocessed():
    task = keras_coda.coda_wrap(text_classifier(), reduction_factor=2)
    texts = ["ships", "grain oil"]
    plain = keras_coda.analysis.routing(task, task.preprocessor(texts))
    routed = keras_coda.analysis.routing(task, texts)
    assert_close(routed.indices, plain.indices)
    highlighted = keras_coda.analysis.highlight_routing(task, texts)
    assert highlighted.tokens[0] == ["[CLS]", "ships", "[SEP]"]
    with pytest.raises(ValueError, match="needs the `tokenizer`"):
        keras_coda.analysis.highlight_routing(
            task.backbone, task.preprocessor(texts)
        )
    task = keras_hub.models.ViTImageClassifier(
        vit_backbone(),
        num_classes=2,
        preprocessor=keras_hub.models.ViTImageClassifierPreprocessor(
            keras_hub.layers.ViTImageConverter(scale=1 / 127.5, offset=-1.0)
        ),
    )
    task = keras_coda.coda_wrap(task, reduction_factor=3)
    images = np.random.default_rng(0).uniform(0, 255, vit_inputs().shape)
    plain = keras_coda.analysis.routing(
        task.backbone, (images / 127.5 - 1).astype("float32")
    )
    routed = keras_coda.analysis.routing(task, images.astype("float32"))
    assert_close(routed.indices, plain.indices)


def test_highlighted_image():
    coda = keras_coda.coda_wrap(vit_backbone())
    with pytest.raises(TypeError, match="plot_routing"):
        keras_coda.analysis.highlight_routing(coda, {"images": 0}, None)
