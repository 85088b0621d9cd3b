from tests.conversion.models import BERT
from tests.conversion.models import bert_inputs
from tests.conversion.models import real_tokens
from tests.conversion.tiny import TinyModel

CONFIG = {
    "vocab_size": BERT["vocabulary_size"],
    "embedding_dim": 8,
    **{key: BERT[key] for key in BERT if key != "vocabulary_size"},
}

MODELS = [
    TinyModel(
        "ElectraBackbone",
        CONFIG,
        bert_inputs,
        real=real_tokens,
        num_prefix_tokens=1,
    )
]
