"""Tiny models with random weights, and what to feed them."""

import keras
import keras_hub
import numpy as np
import pytest

VOCABULARY_SIZE = 50
HIDDEN_DIM = 16
NUM_LAYERS = 2
IMAGE_SIZE = 16

# Where padding begins in each row of a batch.
LENGTHS = (12, 7, 12)


def needs(name):
    """Skips a test where the installed KerasHub lacks a class."""
    return pytest.mark.skipif(
        not hasattr(keras_hub.models, name), reason=f"KerasHub has no {name}"
    )


def task_if_known(name, backbone, inputs):
    """A list of a task and its inputs; empty if KerasHub lacks the task."""
    task_cls = getattr(keras_hub.models, name, None)
    if task_cls is None:
        return []
    return [(task_cls(backbone=backbone, preprocessor=None), inputs)]


# For masked language models: of the last row, the last token.
MASK_POSITIONS = np.array([[1, 3], [0, 2], [5, 11]])


def randomize(model, seed=0):
    """Gives every weight a size that a test cannot overlook."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        value = rng.normal(scale=0.3, size=weight.shape)
        if weight.name in ("gamma", "weight"):
            value += 1.0
        weight.assign(value)
    # DINOv2 resizes its position embeddings to the images, and back for files.
    weights = {weight.path: weight for weight in model.weights}
    for path, weight in weights.items():
        if weight.name == "interpolated_position_embeddings":
            original = weights[path.replace("interpolated_", "")]
            weight.assign(keras.ops.convert_to_numpy(original))
    return model


BERT = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": NUM_LAYERS,
    "num_heads": 2,
    "hidden_dim": HIDDEN_DIM,
    "intermediate_dim": 32,
    "max_sequence_length": 64,
}


WORDS = ["ships", "grain", "oil", "gold", "sugar", "banks", "trade", "crops"]


def text_classifier(**kwargs):
    """A BERT with a head for three classes, that takes texts of `WORDS`."""
    tokenizer = keras_hub.models.BertTokenizer(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    )
    return keras_hub.models.BertTextClassifier(
        bert_backbone(**kwargs),
        num_classes=3,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=12
        ),
    )


def bert_backbone(seed=0, **kwargs):
    backbone = keras_hub.models.BertBackbone(**{**BERT, **kwargs})
    return randomize(backbone, seed)


T5 = {
    "vocabulary_size": VOCABULARY_SIZE,
    "num_layers": NUM_LAYERS,
    "num_heads": 2,
    "hidden_dim": HIDDEN_DIM,
    "intermediate_dim": 32,
}


def t5_backbone(seed=0, **kwargs):
    backbone = keras_hub.models.T5Backbone(**{**T5, **kwargs})
    return randomize(backbone, seed)


VIT = {
    "image_shape": (IMAGE_SIZE, IMAGE_SIZE, 3),
    "patch_size": 4,
    "num_layers": NUM_LAYERS,
    "num_heads": 2,
    "hidden_dim": HIDDEN_DIM,
    "mlp_dim": 32,
}


def vit_backbone(seed=0, **kwargs):
    backbone = keras_hub.models.ViTBackbone(**{**VIT, **kwargs})
    return randomize(backbone, seed)


def channels_first_vit():
    """`vit_backbone` for images `(batch_size, channels, height, width)`."""
    return vit_backbone(
        image_shape=(3, IMAGE_SIZE, IMAGE_SIZE), data_format="channels_first"
    )


def tokens(length=12, lengths=LENGTHS, seed=0):
    """Token ids and padding mask; the real tokens depend on no length."""
    rng = np.random.default_rng(seed)
    token_ids = np.zeros((len(lengths), length), "int32")
    padding_mask = np.zeros((len(lengths), length), "int32")
    for row, real in enumerate(lengths):
        token_ids[row, :real] = rng.integers(1, VOCABULARY_SIZE, real)
        padding_mask[row, :real] = 1
    return token_ids, padding_mask


def bert_inputs(length=12, lengths=LENGTHS):
    token_ids, padding_mask = tokens(length, lengths)
    return {
        "token_ids": token_ids,
        "segment_ids": np.zeros_like(token_ids),
        "padding_mask": padding_mask,
    }


def roberta_inputs(length=12, lengths=LENGTHS):
    token_ids, padding_mask = tokens(length, lengths)
    return {"token_ids": token_ids, "padding_mask": padding_mask}


def real_tokens(outputs, inputs):
    """The outputs of a text encoder that padding must not change."""
    real = inputs["padding_mask"].astype(bool)
    if not isinstance(outputs, dict):
        return outputs[real]
    return [outputs["pooled_output"], outputs["sequence_output"][real]]


def t5_inputs(length=12, lengths=LENGTHS):
    encoder_ids, encoder_mask = tokens(length, lengths)
    decoder_ids, decoder_mask = tokens(5, [5, 3, 4][: len(lengths)], seed=1)
    return {
        "encoder_token_ids": encoder_ids,
        "encoder_padding_mask": encoder_mask,
        "decoder_token_ids": decoder_ids,
        "decoder_padding_mask": decoder_mask,
    }


def vit_inputs():
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, IMAGE_SIZE, IMAGE_SIZE, 3)).astype("float32")


def predict(model, inputs):
    """`model.predict`, with what a task adds taken out."""
    return model.predict(inputs, verbose=0)


def compute(model, inputs):
    """The outputs of `predict`, eagerly: compiling takes seconds."""
    if any(x.dtype.kind == "U" for x in keras.tree.flatten(inputs)):
        # A preprocessor reads them.
        return predict(model, inputs)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, inputs)
    return keras.tree.map_structure(
        lambda x: keras.ops.convert_to_numpy(keras.ops.stop_gradient(x)),
        model(tensors, training=False),
    )


def assert_close(actual, expected, atol=1e-5):
    """Compares two structures of arrays."""
    keras.tree.map_structure(
        lambda a, b: np.testing.assert_allclose(
            keras.ops.convert_to_numpy(a),
            keras.ops.convert_to_numpy(b),
            rtol=1e-5,
            atol=atol,
        ),
        actual,
        expected,
    )


def assert_changed_and_blind_to_padding(tiny, model, dense_outputs):
    """Of a model that adapters changed, on a `TinyModel`'s inputs."""
    inputs = tiny.inputs()
    outputs = compute(model, inputs)
    first, other = (keras.tree.flatten(x)[0] for x in (outputs, dense_outputs))
    assert np.abs(first - other).max() > 1e-3
    if tiny.real is not None:
        longer = tiny.inputs(24)
        assert_close(
            tiny.real(compute(model, longer), longer),
            tiny.real(outputs, inputs),
        )
