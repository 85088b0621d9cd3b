"""Shortcuts by least squares."""

import math

import numpy as np

from keras_coda.training.block_chain import BlockChain
from keras_coda.training.least_squares import Moments
from keras_coda.training.least_squares import explained_variance
from keras_coda.training.least_squares import ridge_regression
from keras_coda.training.observation import apply
from keras_coda.training.observation import choosable
from keras_coda.training.observation import dense
from keras_coda.training.observation import routed_tokens
from keras_coda.training.observation import stacks
from keras_coda.training.observation import to_float32


def fit_shortcuts(coda, inputs, ridge, in_sequence):
    """Fits the shortcuts of a model, block after block.

    A shortcut predicts what a token lacks: the dense model's state behind the
    block, less the token's own state before it.

    Args:
        coda: a converted model.
        inputs: list of batches of its inputs, as tensors.
        ridge: float. Penalty of the coefficients.
        in_sequence: bool. Whether blocks are fitted to the states that the
            fitted blocks before them make at the model's reduction factors,
            and to the tokens that are left out there; or to all states of the
            dense model.

    Returns:
        A dict from the id of each block that was fitted to the share that its
        shortcut explains.
    """
    target_chain = BlockChain(coda, inputs)
    chain = BlockChain(coda, inputs)
    shares = {}
    for block, *left_out in runs(coda):
        for passed in (block, *left_out):
            with dense([passed]):
                targets = [x.outputs for x in target_chain.records(passed)]
            target_chain.advance(passed, targets)
        is_fitted = block.reduction_factor > 1 or not in_sequence
        if block.shortcut is not None and is_fitted:
            records = chain.records(block, known=targets)
            moments = _moments(block, records, targets, in_sequence)
            if moments.count:
                shares[id(block)] = _fit(block.shortcut, moments, ridge)
        states = targets
        if in_sequence:
            states = [x.outputs for x in chain.records(block)]
        for passed in (block, *left_out):
            chain.advance(passed, states)
    return shares


def runs(coda):
    """The blocks, each in a list with those behind it that do not run."""
    for stack in stacks(coda):
        run = []
        for block in stack:
            if run and block.reduction_factor != math.inf:
                yield run
                run = []
            run.append(block)
        yield run


def _moments(block, records, targets, left_out_alone):
    """Of what a shortcut reads, and of what its tokens lack."""
    moments = Moments()
    for record, target in zip(records, targets):
        hidden = to_float32(record.hidden)
        adapted = np.asarray(apply(block.adapter, hidden), "float32")
        missing = to_float32(target) - to_float32(record.inputs) - adapted
        tokens = choosable(block, record)
        if left_out_alone:
            routing = block.choose(
                record.hidden, record.padding_mask, record.pinned
            )
            tokens &= ~routed_tokens(record, routing)
        moments.add(hidden[tokens], missing[tokens])
    return moments


def _fit(shortcut, moments, ridge):
    """Fits a shortcut by reduced-rank ridge regression.

    Returns:
        The share of the targets' mean square that it explains.
    """
    mean, target_mean, covariance, cross, mean_squares = moments.normalized()
    coefficients = ridge_regression(covariance, cross, ridge)
    # The directions in which the predicted updates vary most.
    predicted = coefficients.T @ covariance @ coefficients
    _, directions = np.linalg.eigh(predicted)
    directions = directions[:, -shortcut.adapter_dim :]
    # A rank above the hidden dimension has nothing more to offer.
    excess = shortcut.adapter_dim - directions.shape[1]
    down = np.pad(coefficients @ directions, [(0, 0), (0, excess)])
    up = np.pad(directions.T, [(0, excess), (0, 0)])
    shortcut.down.kernel.assign(down)
    shortcut.down.bias.assign(np.zeros(len(up)))
    shortcut.up.kernel.assign(up)
    shortcut.up.bias.assign(target_mean - mean @ down @ up)
    explained = np.sum(target_mean**2) + explained_variance(
        down @ up, covariance, cross
    )
    total = np.sum(mean_squares)
    # Of nothing, all is explained: a block may have reached a fixed point.
    return float(explained / total) if total > 0 else 1.0
