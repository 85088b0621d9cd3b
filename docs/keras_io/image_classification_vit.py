"""
Title: Classify images with ViT and conditional adapters
Author: The keras_coda maintainers
Date created: 2026/11/20
Last modified: 2026/11/26
Description: Teach a ViT new classes and compute half of its patches.
Accelerator: None
"""

"""
## Introduction

In this notebook a Vision Transformer learns new classes with *conditional
adapters* (CoDA, [Lei et al., 2023](https://arxiv.org/abs/2304.04947)). We ask
for half of the computation, look at which patches each block still computes, at
what that costs in accuracy and gains in speed, and save and export the result.

**What CoDA does.** The pretrained model stays frozen. Beside every block stand
two small trainable parts: an *adapter*, which sees all patches, and a *router*,
which chooses the patches that the big frozen block computes: one in four, if its
`reduction_factor` is 4. The other patches take the cheap way, through the adapter
alone.

**When it pays.** When a pretrained model is too slow to serve or too big to
fine-tune: ViT-B/16 on 224 x 224 pixels has 197 tokens in each of its 12 blocks,
and more with bigger images. And when one pretrained model serves many tasks,
because each task is a file of a few megabytes.

**When it does not.** A quarter of the patches is not a quarter of the time:
adapters, routers, and the keys and values of attention are still computed for
all of them, and the fewer patches there are, the more these weigh. Without
training, accuracy falls. And where all of an image matters, as in segmentation,
a smaller reduction factor is the way to go.
"""

"""
## Setup

Keras reads the backend when it is imported, so choose it first: `"tensorflow"`,
`"jax"` or `"torch"`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

"""shell
pip install --quiet "keras-coda[hub,plot]"
"""

import time

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np

import keras_coda

# The tests run this notebook with less of everything.
QUICK = os.environ.get("KERAS_CODA_QUICK") == "1"
keras.utils.set_random_seed(0)

"""
## Clothes

Fashion-MNIST has small pictures of ten kinds of clothes. Five kinds are for
pretraining. The other five are the new task, of which we have fewer examples.
"""

NAMES = [
    "T-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
]
OLD_CLASSES = [0, 1, 3, 7, 8]
NEW_CLASSES = [2, 4, 5, 6, 9]


def select(images, labels, classes, size):
    """The first images of some classes, from -1 to 1, and their labels."""
    chosen = np.flatnonzero(np.isin(labels, classes))[:size]
    images = images[chosen, ..., None].astype("float32") / 127.5 - 1.0
    return images, np.searchsorted(classes, labels[chosen])


train, test = keras.datasets.fashion_mnist.load_data()
old_images, old_labels = select(*train, OLD_CLASSES, 64 if QUICK else 6000)
train_images, train_labels = select(*train, NEW_CLASSES, 64 if QUICK else 2000)
test_images, test_labels = select(*test, NEW_CLASSES, 32 if QUICK else 1000)

figure, axes = plt.subplots(1, 5, figsize=(8, 2))
for label, axis in enumerate(axes):
    axis.imshow(train_images[np.argmax(train_labels == label)], cmap="gray")
    axis.set_title(NAMES[NEW_CLASSES[label]])
    axis.set_axis_off()

"""
## A pretrained model

A small ViT, trained on the old classes, stands in for a pretrained one. With a
GPU, take a real one in its place, skip this training, and give it your own
images, resized to its 224 x 224 pixels:

```python
classifier = keras_hub.models.ViTImageClassifier.from_preset(
    "vit_base_patch16_224_imagenet", num_classes=5
)
```
"""

backbone = keras_hub.models.ViTBackbone(
    image_shape=(28, 28, 1),
    patch_size=4,
    num_layers=2 if QUICK else 4,
    num_heads=4,
    hidden_dim=64,
    mlp_dim=128,
)
pretrained = keras_hub.models.ViTImageClassifier(backbone, num_classes=5)


def fit(model, images, labels, epochs, learning_rate):
    model.compile(
        optimizer=keras.optimizers.AdamW(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(images, labels, batch_size=32, epochs=epochs, verbose=2)


fit(
    pretrained,
    old_images,
    old_labels,
    epochs=1 if QUICK else 5,
    learning_rate=1e-3,
)

"""
## The new task

First stage: a new head on the pretrained backbone, wrapped with
`reduction_factor=1`, which leaves nothing out. Only adapters, routers, layer
normalisations and the head are trained: much of this small model, but 1.4% of
ViT-B/16. `shortcut_dim` prepares for the second stage.
"""

classifier = keras_hub.models.ViTImageClassifier(backbone, num_classes=5)
coda = keras_coda.coda_wrap(
    classifier, reduction_factor=1, adapter_dim=16, shortcut_dim=32
)
coda.trainable_summary()
fit(
    coda,
    train_images,
    train_labels,
    epochs=1 if QUICK else 5,
    learning_rate=3e-3,
)


def accuracy():
    logits = coda.predict(test_images, verbose=0)
    return np.mean(logits.argmax(axis=-1) == test_labels)


accuracies = {"r = 1": accuracy()}

"""
Second stage: say how much less each image is to cost. On some hundred images
without labels, `calibrate` fits the routers, which have never chosen anything, and
the shortcuts of the patches that are left out, and chooses a reduction factor for
each block. It counts multiply-adds; with `cost="seconds"` it measures on this
machine.
"""

coda.reduction_factor = 4
accuracies["r = 4, not calibrated"] = accuracy()

calibration = keras_coda.training.calibrate(coda, train_images[:384], speedup=2)
print(calibration)
accuracies["calibrated for a speedup of 2"] = accuracy()

"""
Now train on as it is, with a smaller learning rate. (A model that calibration
alone makes good enough can be served as it is.)
"""

fit(
    coda,
    train_images,
    train_labels,
    epochs=1 if QUICK else 3,
    learning_rate=1e-3,
)
accuracies["calibrated and trained on"] = accuracy()

for name, value in accuracies.items():
    print(f"{name}: {value:.1%} of the test images are right")

"""
## What it routes

One row for each image, one column for each block. The block computes the patches
that are not blue; the clearer, the more they weigh.
"""

chosen = [np.argmax(test_labels == label) for label in range(5)]
figure = keras_coda.analysis.plot_routing(coda, test_images[chosen], scale=1.5)
figure

"""
## What it gains

Speed depends on the shape of a model and not on its weights, so we can measure
that of ViT-B/16 at r = 4 without downloading it, next to that of our small model.
"""

vit_base = keras_hub.models.ViTBackbone(
    image_shape=(224, 224, 3),
    patch_size=16,
    num_layers=1 if QUICK else 12,
    num_heads=12,
    hidden_dim=768,
    mlp_dim=3072,
)
vit_base = keras_coda.coda_wrap(vit_base, reduction_factor=1, shortcut_dim=64)


def images_per_second(model, images):
    seconds = []
    # The first round compiles; the best of the others counts.
    for _ in range(2 if QUICK else 5):
        start = time.perf_counter()
        model.predict(images, verbose=0)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds[1:])


big_images = np.zeros((4, 224, 224, 3), "float32")
for name, factors, vit_base.reduction_factor in (
    ("dense", 1, 1),
    ("routed", calibration.reduction_factor, 4),
):
    coda.reduction_factor = factors
    print(
        f"{name}: small ViT {images_per_second(coda, test_images):.0f}, "
        f"ViT-B/16 {images_per_second(vit_base, big_images):.2f} images/s"
    )

"""
## Save the adapter

The file holds what was trained, without the frozen model. `load_adapter` puts
it into a freshly wrapped model, under any backend; many adapters can take turns
on one model.
"""

coda.save_adapter("clothes.safetensors")
print(f"{os.path.getsize('clothes.safetensors') / 1e3:.0f} kB")

reloaded = keras_coda.coda_wrap(
    classifier, reduction_factor=1, adapter_dim=16, shortcut_dim=32
)
reloaded.load_adapter("clothes.safetensors")
difference = reloaded.predict(test_images, verbose=0) - coda.predict(
    test_images, verbose=0
)
print(f"r = {reloaded.reduction_factor}, logits within {abs(difference).max()}")

"""
## Export it

A SavedModel runs without Keras: in TensorFlow Serving, or as here in plain
TensorFlow.
"""

keras_coda.export(coda, "clothes", format="tf_saved_model")

import tensorflow as tf

served = tf.saved_model.load("clothes")
request = {"images": tf.constant(test_images[chosen])}
logits = np.asarray(served.serve(request)["predictions"])
for label, new_class in zip(logits.argmax(axis=-1), NEW_CLASSES):
    print(f"{NAMES[new_class]} is taken for: {NAMES[NEW_CLASSES[label]]}")
