"""Which reduction factor for which block, at a speed that is asked for."""

import itertools
import math

import numpy as np

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.block_chain import BlockChain
from keras_coda.training.observation import LEFT_OUT
from keras_coda.training.observation import at_factors
from keras_coda.training.observation import dense
from keras_coda.training.observation import stacks

# Where the error of one block is measured, and what is chosen from: few, since
# each makes tensors of a new shape, which XLA compiles for.
MEASURED = (2, 5, LEFT_OUT)
FACTORS = (1, 1.25, 1.5, 2, 2.5, 3, 4, 5, 7, 10, LEFT_OUT)


class Search:
    """Looks for the factors with the smallest error at a speed.

    The error of each block alone is measured at a few factors, and the errors
    of all blocks together are guessed to be the sum. The most promising factors
    by this guess are measured. Those that leave out whole blocks, as one does
    who drops layers, always are.

    Args:
        coda: a converted model with fitted shortcuts and routers.
        observed: the `Observed` error of what is read.
        cost: a `Cost`.
        speedup: float. What is to be reached.

    Raises:
        ValueError: if it is out of reach.
    """

    num_candidates = 8
    num_rounds = 2

    def __init__(self, coda, observed, cost, speedup):
        self.coda = coda
        self.blocks = backbone_of(coda).conditional_blocks
        self.observed, self.cost, self.speedup = observed, cost, speedup
        self.measured = {}
        self.first_blocks = [id(stack[0]) for stack in stacks(coda)]

    @property
    def num_measurements(self):
        """How many errors are measured, at most."""
        singles = len(self.blocks) * len(MEASURED)
        return singles + (2 + self.num_rounds) * self.num_candidates

    def uniform(self):
        """The same factor for all blocks."""
        size = len(self.blocks)
        found = self.solve(lambda r: [r] * size)
        if not found or self.speedup <= 1:
            most = self.cost.speedup(self.merged([LEFT_OUT] * size))
            raise ValueError(
                "`speedup` must be above 1 and within reach: with all blocks "
                f"left out, adapters and shortcuts leave {most:.2f} times. Ask "
                "for less, or convert with a smaller `adapter_dim` and "
                f"`shortcut_dim`. Received: speedup={self.speedup}"
            )
        return found[0]

    def run(self, progress):
        """The best factors that were found, as a list.

        Args:
            progress: a `rich.progress.Progress` to report to.
        """
        bar = progress.add_task("choosing", total=self.num_measurements)
        self.on_measure = lambda: progress.advance(bar)
        size = len(self.blocks)
        self.chains = self._dense_chains()
        self.single_errors = [
            [0.0]
            + [
                self.error(replace([1] * size, index, factor))
                for factor in MEASURED
            ]
            for index in range(size)
        ]
        self.measure([self.layers_left_out()])
        self.measure([*self.cheapest_sums(), *self.patterns()])
        for _ in range(self.num_rounds):
            self.measure(self.neighbours(self.ranked()[0]))
        progress.remove_task(bar)
        return self.merged(self.ranked()[0])

    def _dense_chains(self):
        """The states before each block, of a dense model."""
        chains = []
        chain = BlockChain(self.coda, self.observed.inputs)
        for block in self.blocks:
            chains.append(chain.copy())
            with dense([block]):
                outputs = [record.outputs for record in chain.records(block)]
            chain.advance(block, outputs)
        return chains

    def ranked(self):
        """What was measured and is fast enough, best first."""
        return sorted(filter(self.is_fast, self.measured), key=self.error)

    def is_fast(self, factors):
        return self.cost.speedup(self.merged(factors)) >= self.speedup

    def merged(self, factors):
        """With one shortcut for all blocks of a run that is left out.

        Where all tokens are read, nothing of them is computed but shortcuts and
        adapters, and those of the first can do what all do.
        """
        merged = list(factors)
        if not self.observed.reads_all_tokens:
            return merged
        for index, block in enumerate(self.blocks):
            is_behind = index > 0 and id(block) not in self.first_blocks
            if is_behind and factors[index - 1] == factors[index] == LEFT_OUT:
                merged[index] = math.inf
        return merged

    def measure(self, candidates):
        """Measures the most promising of some factors."""
        new = {*map(tuple, candidates)} - set(self.measured)
        for factors in sorted(new, key=self.guess)[: self.num_candidates]:
            self.error(factors)

    def error(self, factors):
        factors = tuple(factors)
        if factors not in self.measured:
            # Blocks before the first that routes need not be computed.
            first = next(
                (index for index, r in enumerate(factors) if r > 1),
                len(factors) - 1,
            )
            with at_factors(factors, self.blocks):
                self.measured[factors] = self.observed.mean_error(
                    self.chains[first].outputs(self.observed.run)
                )
            self.on_measure()
        return self.measured[factors]

    def guess(self, factors):
        """The sum of the blocks' own errors."""
        return sum(
            self._single_guess(index, factor)
            for index, factor in enumerate(factors)
        )

    def _single_guess(self, index, factor):
        shares = [1 - 1 / measured for measured in (1, *MEASURED)]
        return np.interp(1 - 1 / factor, shares, self.single_errors[index])

    def solve(self, make):
        """The smallest factor for which `make(factor)` is fast enough.

        Returns:
            A list with the factors, empty if none is.
        """
        candidates = (make(factor) for factor in FACTORS)
        return [*itertools.islice(filter(self.is_fast, candidates), 1)]

    def layers_left_out(self):
        """Dense first blocks, then nothing, but for one block between."""
        size = len(self.blocks)
        found = (
            self.solve(
                lambda r: [1] * number + [r] + [LEFT_OUT] * (size - number - 1)
            )
            for number in reversed(range(size))
        )
        # There is some: `uniform` found something.
        return next(filter(None, found))[0]

    def patterns(self):
        """Dense first or last blocks, left-out ones, one factor for others."""
        size = len(self.blocks)
        for first in range(size):
            for last in range(size - first):
                for end in (1, LEFT_OUT):
                    yield from self.solve(
                        lambda r: (
                            [1] * first
                            + [r] * (size - first - last)
                            + [end] * last
                        )
                    )

    def cheapest_sums(self):
        """The factors with the smallest guess, by dynamic programming."""
        num_steps = 500
        budget = self.cost.dense / self.speedup - self.cost.outside
        best = {0: (0.0, ())}
        for index in range(len(self.blocks)):
            following = {}
            for spent, (error, factors) in best.items():
                for factor in FACTORS:
                    cost = self.cost.block(index, factor) / budget
                    total = spent + math.ceil(num_steps * cost)
                    guess = error + self._single_guess(index, factor)
                    if total <= num_steps and (
                        total not in following or guess < following[total][0]
                    ):
                        following[total] = guess, (*factors, factor)
            best = following
        return [min(best.values())[1]] if best else []

    def neighbours(self, factors):
        """One block computes more, and another as much less as is needed."""
        size = len(factors)
        for more in range(size):
            lower = [r for r in FACTORS if r < factors[more]]
            if not lower:
                continue
            changed = replace(factors, more, lower[-1])
            for less in set(range(size)) - {more}:
                yield from (
                    found
                    for found in self.solve(lambda r: replace(changed, less, r))
                    if found[less] > factors[less]
                )


def replace(factors, index, factor):
    """The factors as a tuple, with another one for one block."""
    return (*factors[:index], factor, *factors[index + 1 :])
