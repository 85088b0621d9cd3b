"""Watching, and replacing, what the conditional blocks of a model route."""

import threading
from typing import Any
from typing import NamedTuple

from keras_coda.layers.routed import BlockRouting

_active = threading.local()


class BlockRecord(NamedTuple):
    """What one call of a conditional block read, routed and returned.

    Attributes:
        inputs: tensor of shape `(batch_size, n, hidden_dim)`.
        hidden: what attention, router and adapter read, of that shape.
        padding_mask: bool tensor of shape `(batch_size, n)`, or `None`.
        pinned: bool tensor of that shape, the tokens that are always routed,
            or `None`.
        routing: `BlockRouting`, or `None` if the outputs were known.
        outputs: tensor of the shape of `inputs`.
    """

    inputs: Any
    hidden: Any
    padding_mask: Any
    pinned: Any
    routing: BlockRouting
    outputs: Any


class RoutingScope:
    """Records the conditional blocks that are called while it is entered.

    For models called as functions, not by `predict` and `fit`, which compile
    them.

    Args:
        choose: optional function of `(block, hidden, padding_mask, pinned)`
            that returns the `BlockRouting` to use in the place of the router's,
            or `None` for the router's.
        known: optional dict from the id of a block to outputs that it is to
            return, in the place of computing them.

    Attributes:
        records: dict from the id of each block to its `BlockRecord`.
    """

    def __init__(self, choose=None, known=None):
        self.choose = choose
        self.known = known or {}
        self.records = {}

    def __enter__(self):
        self._outer = current_scope()
        _active.scope = self
        return self

    def __exit__(self, *args):
        _active.scope = self._outer

    def record(self, block):
        """The `BlockRecord` of a block that was called."""
        return self.records[id(block)]


def current_scope():
    """The innermost scope that is entered in this thread, or `None`."""
    return getattr(_active, "scope", None)
