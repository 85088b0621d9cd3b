import keras_hub
import numpy as np

from tests.conversion.models import HIDDEN_DIM
from tests.conversion.models import IMAGE_SIZE
from tests.conversion.models import VIT
from tests.conversion.models import tokens
from tests.conversion.models import vit_inputs
from tests.conversion.tiny import TinyModel

MAX_LABEL_LENGTH = 7


def config():
    return {
        "image_encoder": keras_hub.models.ViTBackbone(
            **VIT, use_class_token=False
        ),
        # Of its tokenizer.
        "vocabulary_size": 97,
        "max_label_length": MAX_LABEL_LENGTH,
        "decoder_hidden_dim": HIDDEN_DIM,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 32,
    }


def inputs(length=None):
    token_ids, padding_mask = tokens(MAX_LABEL_LENGTH, (7, 4, 7))
    return {
        "images": vit_inputs(),
        "token_ids": token_ids,
        "padding_mask": padding_mask,
    }


def tasks(backbone):
    # It cannot do without.
    preprocessor = keras_hub.models.PARSeqCausalLMPreprocessor(
        keras_hub.layers.PARSeqImageConverter((IMAGE_SIZE, IMAGE_SIZE)),
        keras_hub.tokenizers.PARSeqTokenizer(max_label_length=MAX_LABEL_LENGTH),
        sequence_length=MAX_LABEL_LENGTH,
    )
    task = keras_hub.models.PARSeqCausalLM(preprocessor, backbone)
    responses = np.array(["ab", "c", "def"])
    return [(task, {"images": vit_inputs(), "responses": responses})]


MODELS = [
    TinyModel(
        "PARSeqBackbone",
        config,
        inputs,
        tasks,
        num_prefix_tokens="auto",
    )
]
