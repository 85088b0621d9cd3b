"""Tiny language models, which differ in little."""

from tests.conversion.models import roberta_inputs
from tests.conversion.models import task_if_known
from tests.conversion.tiny import TinyModel

CONFIG = {
    "vocabulary_size": 50,
    "num_layers": 2,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
    "hidden_dim": 16,
    "intermediate_dim": 32,
}


def real(outputs, inputs):
    if len(outputs.shape) == 2:
        return outputs
    return outputs[inputs["padding_mask"].astype(bool)]


def causal_model(prefix, task_names=("CausalLM",), **config):
    """The `TinyModel` of a language model, by the prefix of its classes."""

    def tasks(backbone):
        return [
            task
            for name in task_names
            for task in task_if_known(prefix + name, backbone, roberta_inputs())
        ]

    return TinyModel(
        f"{prefix}Backbone",
        {**CONFIG, **config},
        roberta_inputs,
        tasks,
        real=real,
        num_prefix_tokens="auto",
        routes_by_row=True,
    )
