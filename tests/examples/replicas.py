"""Compares a model that two processes fit with one that a single one fits.

`torchrun --nproc-per-node 2 tests/examples/replicas.py`;
`test_distributed_torch.py` runs it.
"""

import distributed_torch
import keras
import keras_hub
import numpy as np
import torch

import keras_coda
from tests.conversion import models

REDUCTION_FACTORS = (1, 2, 12)


def make_model():
    classifier = keras_hub.models.BertTextClassifier(
        models.bert_backbone(dropout=0.0), num_classes=3, dropout=0.0
    )
    models.randomize(classifier.get_layer("logits"))
    return keras_coda.coda_wrap(classifier, reduction_factor=4)


def fit(coda, model, rows):
    """Trains at one reduction factor after the other, then on a schedule."""
    inputs = models.bert_inputs(lengths=(12, 7, 12, 9))
    labels = np.array([0, 1, 2, 0])[rows]
    inputs = {name: values[rows] for name, values in inputs.items()}

    def compile_and_fit(**arguments):
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        model.fit(inputs, labels, batch_size=4, verbose=0, **arguments)

    for reduction_factor in REDUCTION_FACTORS:
        keras_coda.set_reduction_factor(coda, reduction_factor)
        compile_and_fit(epochs=2)
    keras_coda.set_reduction_factor(coda, 4)
    schedule = keras_coda.callbacks.ReductionSchedule(0.5, verbose=0)
    compile_and_fit(epochs=4, callbacks=[schedule])
    assert coda.reduction_factor == 4


def main():
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    keras.utils.set_random_seed(0)
    coda, alone = make_model(), make_model()
    for weight, value in zip(alone.weights, coda.weights):
        weight.assign(value)
    before = [np.array(weight.numpy()) for weight in coda.trainable_weights]
    model = distributed_torch.DistributedModel(
        keras.Model(coda.input, coda.output)
    )
    fit(coda, model, slice(rank, None, 2))
    fit(alone, alone, slice(None))
    models.assert_close(coda.trainable_weights, alone.trainable_weights)
    # Only the class token of the last block is read, which is always routed.
    assert {
        weight.path
        for weight, value in zip(coda.trainable_weights, before)
        if np.array_equal(weight.numpy(), value)
    } == {"transformer_layer_1/router/kernel"}
    torch.distributed.destroy_process_group()
    print(f"process {rank} is done")


if __name__ == "__main__":
    main()
