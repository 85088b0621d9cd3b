import keras
import numpy as np
from keras import ops

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.observation import choosable
from keras_coda.training.observation import dense
from keras_coda.training.observation import encoder_of
from keras_coda.training.observation import pinned_tokens
from keras_coda.training.observation import stacks
from keras_coda.training.observation import to_float32

OBSERVED = ("pinned", "tokens")


class Observed:
    """What is read of a model, and how far off it is at given factors.

    Args:
        model: a converted model.
        inputs: list of batches of its inputs, as tensors.
        read: `"pinned"`, the tokens that are always routed, behind the last
            block of each stack; `"tokens"`, all real ones there; or a function
            of the inputs that runs the backbone and returns what is read.
        are_logits: bool. Whether that function returns logits, whose error is
            the divergence of the distributions that they stand for, and not
            the relative squared error.

    Attributes:
        targets, weights: list with, for each batch, a list with an array for
            each stack: what is read of the dense model, and 1 where it is.
        scope: the `RoutingScope` in which the dense model ran on the last
            batch.
    """

    def __init__(self, model, inputs, read, are_logits):
        self.inputs = inputs
        self.read = read
        self.are_logits = are_logits
        blocks = backbone_of(model).conditional_blocks
        self.stacks = [blocks] if callable(read) else stacks(model)
        self.function = read if callable(read) else encoder_of(model)
        self.targets, self.weights = [], []
        for batch in inputs:
            with dense(blocks), RoutingScope() as self.scope:
                outputs = self.run(batch)
            self.targets.append(self._states(outputs, self.scope))
            self.weights.append(self._weights(batch, self.scope))
        self.scales = [self._scale(index) for index in range(len(self.stacks))]

    @property
    def reads_all_tokens(self):
        """Whether something is read of each token, and not of some."""
        if callable(self.read):
            return self.targets[0][0].ndim > 2
        return self.read == "tokens"

    @property
    def reads_something(self):
        """Whether any token is read."""
        return any(w.any() for weights in self.weights for w in weights)

    def stack_of(self, block):
        """The position of a block's stack in what `errors` returns."""
        return next(
            index
            for index, stack in enumerate(self.stacks)
            if any(block is other for other in stack)
        )

    def errors(self, index, outputs, scope):
        """Errors of the sequences in a batch.

        Args:
            index: int. Of the batch.
            outputs: what `function` returned for it.
            scope: the `RoutingScope` in which it ran.

        Returns:
            A list with an array of shape `(batch_size,)` for each stack, or
            one such array if `read` is a function.
        """
        return [
            self._error(output, target, weights) / scale
            for output, target, weights, scale in zip(
                self._states(outputs, scope),
                self.targets[index],
                self.weights[index],
                self.scales,
            )
        ]

    def mean_error(self, results):
        """The mean error of all batches, from `(outputs, scope)` of each."""
        batches = [
            self.errors(index, *result) for index, result in enumerate(results)
        ]
        means = [np.mean(np.concatenate(own)) for own in zip(*batches)]
        return float(np.mean(means))

    def run(self, batch):
        """What `function` returns, without dropout where it is a model."""
        if isinstance(self.function, keras.Model):
            return self.function(batch, training=False)
        return self.function(batch)

    def states(self, outputs, scope):
        """What is read, a list with a tensor for each stack.

        Args:
            outputs: what `function` returned.
            scope: the `RoutingScope` in which it ran.
        """
        if callable(self.read):
            parts = keras.tree.flatten(outputs)
            if len(parts) > 1:
                mask = scope.record(self.stacks[0][-1]).padding_mask
                parts = [_flat_without_padding(part, mask) for part in parts]
                parts = [ops.concatenate(parts, axis=-1)]
            return [all_logits(parts[0])] if self.are_logits else parts
        last = [stack[-1] for stack in self.stacks]
        return [
            scope.known[id(block)]
            if id(block) in scope.known
            else scope.record(block).outputs
            for block in last
        ]

    def _states(self, outputs, scope):
        return [to_float32(x) for x in self.states(outputs, scope)]

    def _weights(self, batch, scope):
        """1 where a target is read, of its shape without the last axis."""
        targets = self.targets[-1]
        if callable(self.read):
            shape = targets[0].shape[:-1]
            mask = output_mask(batch, shape, self.stacks[0], scope)
            if mask is None:
                return [np.ones(shape, "float32")]
            return [to_float32(mask)]
        read = []
        for stack in self.stacks:
            record = scope.record(stack[-1])
            chosen = pinned_tokens(stack[-1], record)
            # A tower may pin nothing, beside one that does.
            alone = len(self.stacks) == 1
            if self.read == "tokens" or not (alone or chosen.any()):
                chosen |= choosable(stack[-1], record)
            read.append(chosen.astype("float32"))
        return read

    def _error(self, output, target, weights):
        if self.are_logits:
            logs, target_logs = log_softmax(output), log_softmax(target)
            error = np.sum(np.exp(target_logs) * (target_logs - logs), axis=-1)
        else:
            error = np.sum((output - target) ** 2, axis=-1)
        axes = tuple(range(1, error.ndim))
        total = np.maximum(np.sum(weights, axis=axes), 1)
        return np.sum(weights * error, axis=axes) / total

    def _scale(self, index):
        """The variance of what is read."""
        if self.are_logits:
            return 1.0
        targets = [batch[index] for batch in self.targets]
        weights = [batch[index][..., None] for batch in self.weights]
        size = max(sum(w.sum() for w in weights), 1)
        axes = tuple(range(targets[0].ndim - 1))
        mean = sum(np.sum(w * t, axes) for w, t in zip(weights, targets)) / size
        squares = (
            np.sum(w * (t - mean) ** 2) for w, t in zip(weights, targets)
        )
        return max(float(sum(squares)) / size, 1e-12)


def output_mask(inputs, shape, blocks, scope):
    """Which outputs of a model are those of real tokens.

    Args:
        inputs: what the model was called with.
        shape: of the outputs, without the last axis; `None` where unknown.
        blocks: its conditional blocks.
        scope: the `RoutingScope` in which it ran.

    Returns:
        A mask of that shape, or `None` where outputs are not of tokens.
    """
    # A language model's outputs begin at the prompt's last token.
    start = (getattr(blocks[0], "prompt_length", None) or 1) - 1
    names = ("decoder_padding_mask", "padding_mask")
    given = inputs if isinstance(inputs, dict) else {}
    masks = [given.get(name) for name in names]
    # Where inputs have other names, or the model makes it.
    masks.append(scope.record(blocks[-1]).padding_mask)
    for mask in masks:
        if mask is None:
            continue
        mask = mask[:, start:]
        # The batch size may be unknown in one of them.
        if tuple(mask.shape)[1:] == tuple(shape)[1:]:
            return mask
    return None


def all_logits(logits):
    """Logits of all classes: one alone is that of the second of two."""
    if logits.shape[-1] > 1:
        return logits
    return ops.concatenate([ops.zeros_like(logits), logits], axis=-1)


def _flat_without_padding(output, mask):
    """One of several outputs, a row for each sequence."""
    shape = ops.shape(output)
    if mask is not None and len(shape) == 3 and shape[:2] == ops.shape(mask):
        output = ops.where(ops.cast(mask, "bool")[..., None], output, 0)
    return ops.reshape(output, (shape[0], -1))


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))
