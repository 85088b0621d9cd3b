"""Counts the multiply-adds of a converted model."""

import math

import keras

from keras_coda._keras_internals import sublayers
from keras_coda.conversion.coda_backbone import CodaBackbone
from keras_coda.layers import ConditionalTransformerBlock
from keras_coda.layers import ParallelAdapter
from keras_coda.layers import Prefix
from keras_coda.layers.attend import is_worth_absorbing

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
