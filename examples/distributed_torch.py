"""Fine-tunes BERT with conditional adapters in several PyTorch processes.

    torchrun --nproc-per-node 2 examples/distributed_torch.py
    torchrun --nproc-per-node 2 examples/distributed_torch.py --data texts.csv

Each process has a copy of the model, on its GPU if there is one, and its share
of the texts; `DistributedDataParallel` averages the gradients of the adapters
after each step. `fit` and its callbacks work as they do in one process: here
`ReductionSchedule` lowers the number of routed tokens step by step.
`--batch-size` is that of each process. The first process saves the adapter.

The options are those of finetune_text_classifier.py.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import finetune_text_classifier as single
import keras
import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

import keras_coda


class Replica(torch.nn.Module):
    """A Keras model, with its weights as PyTorch lists them.

    A functional Keras model has no `parameters()` of its own.
    """

    def __init__(self, model):
        super().__init__()
        self.call = model.__call__
        self.parameter_list = torch.nn.ParameterList(
            [weight.value for weight in model.trainable_weights]
        )

    def forward(self, inputs, training):
        return self.call(inputs, training=training)


class DistributedModel(keras.Model):
    """A built Keras model whose gradients all processes share.

    Args:
        model: the model, on the device of its process.
        **kwargs: for `DistributedDataParallel`.
    """

    def __init__(self, model, **kwargs):
        super().__init__()
        self.model = model
        # In a list, because Keras would track its weights a second time.
        self.replicas = [DistributedDataParallel(Replica(model), **kwargs)]

    def call(self, inputs, training=None):
        return self.replicas[0](inputs, training=training)


def main():
    arguments, data = single.parse_arguments()
    use_gpu = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if use_gpu else "gloo")
    rank = torch.distributed.get_rank()
    num_processes = torch.distributed.get_world_size()
    if use_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))

    # Every process makes the same model and the same order of the texts.
    keras.utils.set_random_seed(arguments.seed)
    classifier = single.load_classifier(arguments, len(data.class_names))
    coda = single.convert(classifier, arguments, reduction_factor=4)
    tokens = classifier.preprocessor(data.train_texts)
    labels = np.array(data.train_labels)
    order = np.random.default_rng(arguments.seed).permutation(len(labels))
    if not arguments.full:
        order = order[: single.TRAIN_SUBSET]
    # As many for each: a process without a batch would keep the others waiting.
    order = order[: len(order) // num_processes * num_processes]
    share = order[rank::num_processes]

    # Dropout differs between processes.
    keras.utils.set_random_seed(arguments.seed + rank)
    model = DistributedModel(keras.Model(coda.input, coda.output))
    model.compile(
        optimizer=keras.optimizers.Adam(arguments.learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    model.fit(
        {name: values[share] for name, values in to_numpy(tokens).items()},
        labels[share],
        batch_size=arguments.batch_size,
        epochs=arguments.epochs,
        shuffle=False,
        callbacks=[keras_coda.callbacks.ReductionSchedule(verbose=0)],
        verbose=2 if rank == 0 else 0,
    )
    if rank == 0:
        coda.save_adapter(arguments.output)
        predictions = np.argmax(single.predict(coda, data.test_texts), axis=-1)
        accuracy = np.mean(predictions == data.test_labels)
        print(
            f"{num_processes} processes, r={coda.reduction_factor:g}: test "
            f"accuracy {accuracy:.1%}. Saved {arguments.output}."
        )
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def to_numpy(tokens):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, tokens)


if __name__ == "__main__":
    main()
