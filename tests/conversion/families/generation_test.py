"""What a converted encoder-decoder has to show when it generates."""

import numpy as np
from keras import ops

import keras_coda
from tests.conversion.models import randomize
from tests.conversion.tiny import tiny_models


class GenerationTest:
    """Subclasses name the tiny model; its one task generates."""

    backbone = None

    def dense_task(self):
        tiny = tiny_models()[self.backbone]
        ((task, _),) = tiny.tasks(tiny.make())
        # A head that matters.
        return randomize(task, seed=1)

    def prompt(self):
        """Encoder inputs and one start token a row."""
        inputs = tiny_models()[self.backbone].inputs()
        inputs["decoder_token_ids"][:, 1:] = 0
        inputs["decoder_padding_mask"][:, 1:] = 0
        return inputs

    def generate(self, task):
        task.compile(sampler="greedy")
        outputs = task.generate(self.prompt(), stop_token_ids=None)
        return ops.convert_to_numpy(outputs["decoder_token_ids"])

    def test_generate_equals_dense_at_reduction_factor_1(self):
        dense = self.dense_task()
        coda = keras_coda.coda_wrap(dense, reduction_factor=1)
        expected = self.generate(dense)
        assert np.array_equal(self.generate(coda), expected)
        # Not one token over and over.
        assert len(np.unique(expected)) > 3

    def test_generate_equals_greedy_search_without_cache(self):
        coda = keras_coda.coda_wrap(self.dense_task(), reduction_factor=3)
        # Adapters that do something.
        for layer in coda.backbone.trained_layers():
            randomize(layer, seed=3)
        inputs = self.prompt()
        for step in range(1, 5):
            logits = ops.convert_to_numpy(coda(inputs))
            inputs["decoder_token_ids"][:, step] = logits[:, step - 1].argmax(
                -1
            )
            inputs["decoder_padding_mask"][:, step] = 1
        assert np.array_equal(self.generate(coda), inputs["decoder_token_ids"])
