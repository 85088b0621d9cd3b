"""What a model costs at given reduction factors."""

import math
import statistics
import time
import warnings

import keras
import numpy as np
from keras import ops

from keras_coda.conversion.coda_wrap import coda_wrap
from keras_coda.conversion.multiply_adds import ADDED_PARTS
from keras_coda.conversion.multiply_adds import count_block
from keras_coda.conversion.multiply_adds import count_outside
from keras_coda.conversion.quantization import restore_quantization
from keras_coda.training.observation import LEFT_OUT

COSTS = ("flops", "seconds")
# Where seconds are measured; between, they are interpolated.
TIMED = (1, 1.5, 2, 3, 5, LEFT_OUT, math.inf)
NUM_ROUNDS = 5


class Cost:
    """Multiply-adds of the part of a model that runs the blocks.

    Args:
        backbone: a converted backbone.
        lengths: list with the number of tokens that each block gets.

    Attributes:
        dense: of the dense model, before conversion.
        outside: of the converted model without any block.
    """

    def __init__(self, backbone, lengths):
        self.blocks = backbone.conditional_blocks
        self.lengths = lengths
        self.attention = backbone.attention
        self.num_sequences = backbone.family.num_sequences(backbone)
        self._counted = {}
        by_block = {id(block): n for block, n in zip(self.blocks, lengths)}
        outside = count_outside(backbone, by_block, counts_decoder=False)
        self.outside = sum(outside.values())
        self.dense = self.outside + sum(
            count
            for index in range(len(lengths))
            for part, count in self._count(index, 1).items()
            if part not in ADDED_PARTS
        )

    def block(self, index, factor):
        """Of one block."""
        key = index, factor
        if key not in self._counted:
            self._counted[key] = sum(self._count(*key).values())
        return self._counted[key]

    def _count(self, index, factor):
        block, n = self.blocks[index], self.lengths[index]
        counts = count_block(block, n, factor, self.attention)
        number = self.num_sequences.get(block.stack_name, 1)
        return {part: number * count for part, count in counts.items()}

    def total(self, factors):
        return self.outside + sum(
            self.block(index, factor) for index, factor in enumerate(factors)
        )

    def speedup(self, factors):
        """Of the factors, over the dense model before conversion."""
        return self.dense / self.total(factors)


class MeasuredCost(Cost):
    """Seconds of `predict` on this machine.

    All blocks are timed together, at one factor after the other. A block's part
    in that is the part that it has in the multiply-adds.

    Args:
        backbone, lengths: see `Cost`.
        batch: the inputs that are timed.
    """

    def __init__(self, backbone, lengths, batch):
        super().__init__(backbone, lengths)
        counts = [
            super(MeasuredCost, self).block(i, 1) for i in range(len(lengths))
        ]
        self.shares = np.divide(counts, sum(counts))
        seconds = time_models(timed_models(backbone), batch)
        self.dense, *self.seconds, self.outside = seconds

    def block(self, index, factor):
        if factor == math.inf:
            return 0.0
        inverse = [1 / timed for timed in reversed(TIMED[:-1])]
        all_blocks = np.interp(1 / factor, inverse, self.seconds[::-1])
        return self.shares[index] * max(all_blocks - self.outside, 0.0)


def timed_models(backbone):
    """The dense model of a converted one, and it converted at each factor.

    They are as large as the model that they are made from, and hold other
    weights, which they share.
    """
    config = backbone.get_config()
    dense = keras.saving.deserialize_keras_object(config["backbone"])
    settings = {
        **vars(backbone.settings),
        "attention": backbone.attention,
        # It would have each of them copy the dense model.
        "lora_rank": None,
    }
    converted = [
        coda_wrap(dense, **{**settings, "reduction_factor": factor})
        for factor in TIMED
    ]
    # Of the weights that all of them share.
    restore_quantization(converted[0], config.get("quantization", []))
    return [dense, *converted]


def time_models(models, batch):
    """The median seconds of a `predict` of each model, timed in turn."""
    batch = keras.tree.map_structure(ops.convert_to_numpy, batch)
    seconds = [[] for _ in models]
    with warnings.catch_warnings():
        # Their routers are new, and their outputs do not matter.
        warnings.simplefilter("ignore", UserWarning)
        for number in range(1 + NUM_ROUNDS):
            for model, times in zip(models, seconds):
                start = time.perf_counter()
                model.predict_on_batch(batch)
                if number > 0:
                    times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]
