import math

import keras

from keras_coda.training.token_objective import TokenObjective


class MaskedLMObjective(TokenObjective):
    """Masked language modelling, for `pretrain`."""

    def __init__(
        self, coda, task_cls, tokenizer, sequence_length, mask_rate, rng
    ):
        super().__init__(coda, task_cls, tokenizer, sequence_length)
        mask_rate = mask_rate or 0.15
        # It masks with KerasHub's `MaskedLMMaskGenerator`.
        self.preprocessor = task_cls.preprocessor_cls(
            self.tokenizer,
            sequence_length=sequence_length,
            mask_selection_rate=mask_rate,
            mask_selection_length=math.ceil(mask_rate * sequence_length),
        )

    def make_batch(self, texts):
        return keras.tree.map_structure(
            keras.ops.convert_to_numpy, self.preprocessor(texts)
        )
