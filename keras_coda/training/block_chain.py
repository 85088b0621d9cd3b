import copy

import keras

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.layers.routing_scope import RoutingScope
from keras_coda.training.observation import behind_front
from keras_coda.training.observation import encoder_of
from keras_coda.training.observation import stacks


class BlockChain:
    """Batches on their way through the blocks of a model, block by block.

    It keeps the states behind the block that was passed last, so that what is
    done block by block computes each block once.

    Args:
        model: a converted model.
        inputs: list of batches of its inputs, as tensors.

    Attributes:
        known: list with a dict for each batch, from the id of each block that
            was passed to the states behind the last one of its stack.
    """

    def __init__(self, model, inputs):
        backbone = backbone_of(model)
        self.inputs = inputs
        self.known = [{} for _ in inputs]
        self._stack_of = {
            id(block): stack for stack in stacks(backbone) for block in stack
        }
        whole = encoder_of(model)
        own = {id(layer) for layer in backbone.layers}
        self._up_to = {
            id(block): behind_front(
                model,
                keras.Model(
                    backbone.input, keras.tree.flatten(block.output)[0]
                ),
            )
            if id(block) in own
            else whole
            for block in backbone.conditional_blocks
        }

    def copy(self):
        other = copy.copy(self)
        other.known = [{**known} for known in self.known]
        return other

    def records(self, block, known=None):
        """Runs a block on all batches; yields a `BlockRecord` of each.

        Args:
            known: optional list of outputs to return in the place of computing
                them, for who asks what the block reads.
        """
        for index, inputs in enumerate(self.inputs):
            outputs = {} if known is None else {id(block): known[index]}
            with RoutingScope(known={**self.known[index], **outputs}) as scope:
                self._up_to[id(block)](inputs, training=False)
            yield scope.record(block)

    def advance(self, block, outputs):
        """Goes on from outputs of a block, a list with those of each batch."""
        stack = self._stack_of[id(block)]
        passed = stack[: [id(x) for x in stack].index(id(block)) + 1]
        for known, states in zip(self.known, outputs):
            known.update({id(x): states for x in passed})

    def outputs(self, function):
        """What a function of the inputs returns for each batch, from here."""
        for inputs, known in zip(self.inputs, self.known):
            with RoutingScope(known=known) as scope:
                yield function(inputs), scope
