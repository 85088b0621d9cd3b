import math
from typing import NamedTuple

import keras
from rich.table import Table

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.conversion.coda_model import validate_converted
from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers import ParallelAdapter
from keras_coda.layers import Prefix
from keras_coda.layers.attend import is_worth_absorbing
from keras_coda.layers.conditional_transformer_block import ATTENTIONS
from keras_coda.layers.set_reduction_factor import per_block_reduction_factors
from keras_coda.tables import as_text
from keras_coda.validation import validate_choice
from keras_coda.validation import validate_positive_integer

PARTS = (
    "projections",
    "attention",
    "feedforward",
    "adapter",
    "shortcut",
    "router",
    "other",
)
# What a dense model does not have.
ADDED_PARTS = ("adapter", "shortcut", "router")


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


def count_block(block, n, reduction_factor, attention):
    """Multiply-adds of one conditional block on one sequence, by part."""
    k = block.num_rows(n, reduction_factor)
    if k == 0:
        return {}
    kernels = block.block.kernels()
    m = n if attention == "k_to_all" else k
    projections, pairs = count_attention(kernels, k, m)
    if kernels.num_positions is not None:
        # Each has a key for the rows and a query for the context.
        positions = kernels.num_positions(n)
        key_and_query = kernels.rows[0], kernels.context[0]
        projections += positions * kernel_size(*key_and_query)
        pairs += positions * (k + m) * kernels.num_heads * kernels.head_dim
    counts = {
        "projections": projections,
        "attention": pairs,
        "feedforward": k * kernel_size(*kernels.feedforward),
        "adapter": _count_adapters(block.adapters, n, kernels),
    }
    if block.shortcut is not None:
        counts["shortcut"] = n * _adapter_size(block.shortcut)
    if block.router.kernel is not None:
        counts["router"] = n * block.router.kernel.shape[0]
    return counts


def count_attention(kernels, k, m):
    """Multiply-adds of k tokens that attend to m: projections and pairs."""
    rows = k * kernel_size(*kernels.rows)
    context = kernel_size(*kernels.context)
    # Score and weighted sum.
    pair = 2 * kernels.num_heads * kernels.head_dim
    projected = m * context, k * m * pair
    if kernels.absorbs:
        hidden_dim = kernels.context[0].kernel.shape[0]
        absorbed = k * context, k * m * 2 * kernels.num_heads * hidden_dim
        if is_worth_absorbing(sum(absorbed), sum(projected)):
            projected = absorbed
    return rows + projected[0], projected[1]


def count_outside(backbone, lengths, decoder_length=None, counts_decoder=True):
    """Multiply-adds of a sequence outside the encoder blocks, by part.

    Of dense layers, convolutions and decoder blocks; each of the latter as one
    self-attention, one cross-attention and one feedforward network.

    Args:
        lengths: dict from the id of each conditional block to its number of
            tokens.
        decoder_length: optional int. Defaults to that of the encoder.
        counts_decoder: bool. Whether decoder blocks are counted. Defaults to
            `True`.
    """
    counts = {"adapter": 0, "other": 0}
    n = lengths[id(backbone.conditional_blocks[0])]
    decoder_length = decoder_length or n
    for layer in backbone.layers:
        if isinstance(layer, ConditionalTransformerBlock):
            continue
        if isinstance(layer, CodaBackbone):
            for part, count in count_outside(
                layer, lengths, decoder_length, counts_decoder
            ).items():
                counts[part] += count
            continue
        inside = [layer, *sublayers(layer, recursive=True)]
        adapters = [x for x in inside if isinstance(x, ParallelAdapter)]
        if adapters and not counts_decoder:
            continue
        if adapters:
            counts["adapter"] += decoder_length * sum(
                map(_adapter_size, adapters)
            )
            counts["other"] += _count_decoder(layer, decoder_length, n)
        elif hasattr(layer, "kernel"):
            counts["other"] += kernel_size(layer) * _num_positions(layer, n)
        else:
            counts["other"] += _count_patches(inside, n, backbone)
            counts["other"] += _count_pooling(inside, n)
    return counts


def _count_patches(layers, n, backbone):
    """Multiply-adds of the patches of an image, without the class token."""
    patches = [x for x in layers if isinstance(x, keras.layers.Conv2D)]
    num_prefix_tokens = backbone.num_prefix_tokens
    if num_prefix_tokens == "auto":
        num_prefix_tokens = 0
    return (n - num_prefix_tokens) * kernel_size(*patches)


def _count_pooling(layers, n):
    """Multiply-adds of a head whose one query attends to all tokens."""
    total = 0
    for layer in layers:
        if isinstance(layer, keras.layers.MultiHeadAttention):
            total += kernel_size(layer.query_dense, layer.output_dense)
            total += n * kernel_size(layer.key_dense, layer.value_dense)
            total += n * 2 * layer.num_heads * layer.key_dim
    if total:
        dense = [x for x in layers if isinstance(x, keras.layers.Dense)]
        total += kernel_size(*dense)
    return total


def _num_positions(layer, n):
    """How many tokens, or pixels, a layer of the graph is applied to."""
    dims = layer.output.shape[1:-1]
    return math.prod(n if dim is None else dim for dim in dims)


def _count_decoder(layer, length, encoder_length):
    """Multiply-adds of a decoder layer, without its adapters."""
    total = 0
    for part, cross in _with_cross(layer):
        if isinstance(part, ParallelAdapter) or not hasattr(part, "kernel"):
            continue
        reads_encoder = cross and part.name.startswith(("key", "value"))
        tokens = encoder_length if reads_encoder else length
        total += tokens * kernel_size(part)
        if part.name.startswith("query"):
            # Its outputs are as wide as all heads together.
            keys = encoder_length if cross else length
            width = kernel_size(part) // part.kernel.shape[0]
            total += 2 * length * keys * width
    return total


def _with_cross(layer, cross=False):
    """All that is inside a layer, with whether it is in cross-attention."""
    for part in sublayers(layer):
        if isinstance(part, ParallelAdapter):
            continue
        inside = cross or "cross" in part.name
        # Moonshine's has no name.
        inside = inside or part is getattr(layer, "cross_attention", None)
        yield part, inside
        yield from _with_cross(part, inside)


def kernel_size(*layers):
    """The number of entries in the kernels of built dense layers."""
    return sum(math.prod(layer.kernel.shape) for layer in layers)


def _count_adapters(adapters, n, kernels):
    """Multiply-adds of the adapters of an encoder block on n tokens."""
    total = 0
    for adapter in adapters:
        if isinstance(adapter, Prefix):
            # Score and weighted sum, as of any other key.
            heads = kernels.num_heads * kernels.head_dim
            total += n * adapter.prefix_length * 2 * heads
        else:
            total += n * _adapter_size(adapter)
    return total


def _adapter_size(adapter):
    return kernel_size(adapter.down, adapter.up)


def _millions(count):
    return f"{count / 1e6:,.2f}"
