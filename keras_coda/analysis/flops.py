from typing import NamedTuple

import keras
from rich.table import Table

from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.multiply_adds import ADDED_PARTS
from keras_coda.conversion.multiply_adds import PARTS
from keras_coda.conversion.multiply_adds import count_block
from keras_coda.conversion.multiply_adds import count_outside
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.conditional_transformer_block import ATTENTIONS
from keras_coda.layers.set_reduction_factor import per_block_reduction_factors
from keras_coda.tables import as_text
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_positive_integer


class Flops(NamedTuple):
    """Multiply-adds of a model, part by part. `print` it for a table.

    Each field is a dict from part to multiply-adds: the query, key, value and
    output `projections`, `attention` scores and weighted sums, `feedforward`
    networks, `adapter`, `shortcut`, the `router`'s scores, and `other`, which
    is what is not in the encoder blocks.

    Attributes:
        dense: of the model before conversion.
        parallel_adapter: of the converted model with `reduction_factor=1`.
        coda: of the converted model.
        title: what was counted.
    """

    dense: dict
    parallel_adapter: dict
    coda: dict
    title: str

    @property
    def ratio(self):
        """Parallel adapters to CoDA: the speedup that arithmetic allows."""
        return sum(self.parallel_adapter.values()) / sum(self.coda.values())

    def __str__(self):
        models = (self.dense, self.parallel_adapter, self.coda)
        table = Table(title=self.title, show_footer=True)
        table.add_column("million multiply-adds", footer="total")
        for name, model in zip(("dense", "+ adapters", "CoDA"), models):
            total = sum(model.values())
            table.add_column(name, footer=_millions(total), justify="right")
        for part in PARTS:
            if any(model[part] for model in models):
                counts = (_millions(model[part]) for model in models)
                table.add_row(part, *counts)
        ratio = f"dense with adapters / CoDA: {self.ratio:.2f}"
        return as_text(table, ratio, width=80)


def flops(
    model,
    sequence_length=None,
    batch_size=1,
    reduction_factor=None,
    attention=None,
    decoder_sequence_length=None,
):
    """Counts the multiply-adds of a converted backbone.

    Of the matrix products, which is nearly all. One multiply-add is two
    floating-point operations. A task's head is not counted.

    Args:
        model: what `keras_coda.coda_wrap` made, a backbone or a task.
        sequence_length: int. Number of tokens n, a ViT's class token included.
            Defaults to that of the model's inputs, where it is fixed. In a
            model of several stacks it is for those whose inputs leave it open.
            Of a language model the first `prompt_length` are the prompt, which
            alone is routed.
        batch_size: int. Defaults to `1`.
        reduction_factor: optional number >= 1, or list with one per block, to
            count at. Defaults to the model's own.
        attention: optional `"k_to_all"` or `"k_to_k"` to count with. Defaults
            to the model's own.
        decoder_sequence_length: optional int. Number of tokens of the decoder
            of an encoder-decoder. Defaults to `sequence_length`.

    Returns:
        A `Flops`: dicts `dense`, `parallel_adapter` and `coda` from part to
        multiply-adds, and their `ratio`. It prints as a table.

    Raises:
        TypeError: if `model` was not converted.
        ValueError: if an argument is out of range, or `sequence_length` is
            missing.

    Example:

    >>> dense = keras_hub.models.BertBackbone(
    ...     vocabulary_size=100,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=16,
    ...     intermediate_dim=64,
    ... )
    >>> coda = keras_coda.coda_wrap(dense, reduction_factor=4, adapter_dim=2)
    >>> flops = keras_coda.analysis.flops(coda, sequence_length=8)
    >>> flops.dense["feedforward"], flops.coda["feedforward"]
    (16384, 4096)

    Reference:
        [Lei et al., 2023](https://arxiv.org/abs/2304.04947), section 3.2.
    """
    validate_converted("model", model)
    backbone = backbone_of(model)
    blocks = backbone.conditional_blocks
    if sequence_length is not None:
        validate_positive_integer("sequence_length", sequence_length)
    lengths = list(_block_lengths(backbone, sequence_length))
    if None in lengths:
        raise ValueError(
            "`sequence_length` must be given: the model takes sequences of "
            "any length."
        )
    validate_positive_integer("batch_size", batch_size)
    if reduction_factor is None:
        reduction_factor = backbone.reduction_factor
    backbone.settings.validate_routing(reduction_factor=reduction_factor)
    attention = validate_choice(
        "attention", attention or backbone.attention, ATTENTIONS
    )
    reduction_factors = per_block_reduction_factors(
        reduction_factor, len(blocks)
    )
    sizes = (lengths, decoder_sequence_length, batch_size)
    ones = [1] * len(blocks)
    adapters = _count(backbone, ones, "k_to_all", *sizes)
    coda = _count(backbone, reduction_factors, attention, *sizes)
    dense = {**adapters, **dict.fromkeys(ADDED_PARTS, 0)}
    tokens = " and ".join(str(n) for n in dict.fromkeys(lengths))
    values = ", ".join(f"{r:g}" for r in dict.fromkeys(reduction_factors))
    return Flops(
        dense,
        adapters,
        coda,
        title=f"{batch_size} x {tokens} tokens, r = {values}, {attention}",
    )


def _block_lengths(backbone, sequence_length):
    """How many tokens each block gets; `None` where that is open."""
    for block in backbone.conditional_blocks:
        fixed = keras.tree.flatten(block.output)[0].shape[1]
        if backbone.nested_backbones or block.stack_name:
            yield fixed or sequence_length
        else:
            yield sequence_length or fixed


def _count(
    backbone,
    reduction_factors,
    attention,
    lengths,
    decoder_length,
    batch_size,
):
    counts = dict.fromkeys(PARTS, 0)
    blocks = backbone.conditional_blocks
    num_sequences = backbone.family.num_sequences(backbone)
    for block, reduction_factor, n in zip(blocks, reduction_factors, lengths):
        for part, count in count_block(
            block, n, reduction_factor, attention
        ).items():
            counts[part] += num_sequences.get(block.stack_name, 1) * count
    lengths = {id(block): n for block, n in zip(blocks, lengths)}
    outside = count_outside(backbone, lengths, decoder_length)
    counts["adapter"] += outside["adapter"]
    counts["other"] = outside["other"]
    return {part: batch_size * count for part, count in counts.items()}


def _millions(count):
    return f"{count / 1e6:,.2f}"
