"""
Title: Generate text with T5 and conditional adapters
Author: The keras_coda maintainers
Date created: 2026/11/20
Last modified: 2026/11/26
Description: Make the encoder of a T5 that generates text fast.
Accelerator: None
"""

"""
## Introduction

In this notebook a T5 reads long messages and writes short slips from them. We
adapt it to a new slip with *conditional adapters* (CoDA,
[Lei et al., 2023](https://arxiv.org/abs/2304.04947)), let its encoder do
with less computation, look at what that costs in accuracy and gains in speed,
and save and export the result.

**What CoDA does.** The pretrained model stays frozen. Beside every encoder
block stand two small trainable parts: an *adapter*, which sees all tokens, and
a *router*, which chooses the tokens that the big frozen block computes: one in four, if its
`reduction_factor` is 4. The other tokens take the cheap way, through the adapter
alone.

**When it pays.** When encoding is what takes the time: long inputs and short
outputs, as in summaries, answers from documents, or extraction of fields. And
when one pretrained model serves many tasks, because each task is a file of a
few megabytes.

**When it does not.** T5's decoder is *not* routed: it gets ordinary adapters.
Writing a long output takes as long as before, so for short inputs and long
outputs, such as chat, CoDA gains next to nothing. And with inputs of a few
dozen tokens there is little to leave out; adapters and routers still see all of
them. So we measure speed on longer inputs and a bigger model than the one that
we train.
"""

"""
## Setup

Keras reads the backend when it is imported, so choose it first: `"tensorflow"`,
`"jax"` or `"torch"`.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

"""shell
pip install --quiet "keras-coda[hub]"
"""

import io
import random
import time

import keras
import keras_hub
import numpy as np
import sentencepiece
import tensorflow as tf

import keras_coda

# The tests run this notebook with less of everything.
QUICK = os.environ.get("KERAS_CODA_QUICK") == "1"
keras.utils.set_random_seed(0)

"""
## Messages and slips

A shop gets chatty messages. Somewhere in each are a name, goods, a day and
a town. We make such messages ourselves, so that a small model learns
them in a minute or two; the rest of the notebook does not depend on it.
"""

FIELDS = {
    "name": "anna bruno clara david elena frank grace hugo".split(),
    "goods": "apples pears plums figs hammers nails saws ropes".split(),
    "day": "monday tuesday wednesday thursday friday saturday".split(),
    "town": "leeds york bath oxford derby exeter dover ripon".split(),
}
SENTENCES = [
    "this is {name} writing to you again",
    "please send me some {goods} as soon as you have them",
    "the best time would be {day} in the morning",
    "i live in the old house near the station of {town}",
]
CHATTER = [
    "the weather has been awful here all week",
    "my sister sends her kind regards",
    "we liked the last parcel very much",
    "ring the bell twice because the dog barks",
    "thank you for being so patient with us",
    "i hope that the road is open again",
]


def make_messages(size, slip, seed):
    """Messages, and what the slip says about each of them."""
    generator = random.Random(seed)
    messages, slips = [], []
    for _ in range(size):
        values = {key: generator.choice(FIELDS[key]) for key in FIELDS}
        sentences = SENTENCES + generator.sample(CHATTER, 3)
        generator.shuffle(sentences)
        messages.append(" ".join(sentences).format(**values))
        slips.append(slip.format(**values))
    return messages, slips


messages, slips = make_messages(
    64 if QUICK else 8000, "{name} {goods} {day} {town}", seed=0
)
print(messages[0])
print("->", slips[0])

"""
## A pretrained model

T5 uses a SentencePiece tokenizer. We train one on our messages; each word is a
token.
"""

proto = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(messages + slips),
    model_writer=proto,
    model_type="word",
    vocab_size=200,
    hard_vocab_limit=False,
    pad_id=0,
    eos_id=1,
    unk_id=2,
    bos_id=-1,
    minloglevel=2,
)
tokenizer = keras_hub.models.T5Tokenizer(proto.getvalue())
preprocessor = keras_hub.models.T5Seq2SeqLMPreprocessor(
    tokenizer, encoder_sequence_length=64, decoder_sequence_length=8
)

"""
A small T5, trained from scratch on the office's slips, stands in for a
pretrained one. With a GPU, take a real one in its place, and skip the tokenizer
above and the training below:

```python
lm = keras_hub.models.T5Seq2SeqLM.from_preset("t5_1.1_base")
preprocessor, tokenizer = lm.preprocessor, lm.preprocessor.tokenizer
preprocessor.encoder_sequence_length = 128
preprocessor.decoder_sequence_length = 24
```

It needs a longer `max_length`, because its tokens are parts of words, and for
its size `adapter_dim=64` and `shortcut_dim=64`. `"flan_base_multi"` is as big
and was trained to follow instructions.
"""

backbone = keras_hub.models.T5Backbone(
    vocabulary_size=tokenizer.vocabulary_size(),
    num_layers=2,
    num_heads=4,
    hidden_dim=64,
    intermediate_dim=128,
    key_value_dim=16,
    dropout=0.0,
    activation="gelu",
    tie_embedding_weights=False,
)
lm = keras_hub.models.T5Seq2SeqLM(backbone, preprocessor=preprocessor)


def fit(model, messages, slips, epochs, learning_rate):
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        sampler="greedy",
    )
    dataset = tf.data.Dataset.from_tensor_slices(
        {"encoder_text": messages, "decoder_text": slips}
    )
    # Shuffled here, anew in every epoch; KerasHub tasks do not shuffle.
    dataset = dataset.shuffle(len(messages)).batch(32)
    model.fit(dataset, epochs=epochs, shuffle=False, verbose=2)


fit(lm, messages, slips, epochs=1 if QUICK else 8, learning_rate=1e-3)

print(messages[1])
print("->", lm.generate(messages[1], max_length=8))

"""
## A new task

The driver needs another slip: day, town and name, in this order. We have fewer
examples of it.

First stage: wrap the model with `reduction_factor=1`, which leaves nothing out,
and fine-tune. Only adapters, routers and layer normalisations are trained.
`shortcut_dim` prepares for the second stage.
"""

train_messages, train_slips = make_messages(
    64 if QUICK else 2000, "{day} {town} {name}", seed=1
)
test_messages, test_slips = make_messages(
    16 if QUICK else 200, "{day} {town} {name}", seed=2
)

coda = keras_coda.coda_wrap(
    lm, reduction_factor=1, adapter_dim=8, shortcut_dim=16
)
coda.trainable_summary()
fit(
    coda,
    train_messages,
    train_slips,
    epochs=1 if QUICK else 6,
    learning_rate=2e-3,
)

"""
A slip is right if all of it is right.
"""

def accuracy():
    generated = coda.generate(test_messages, max_length=8)
    return np.mean([a == b for a, b in zip(generated, test_slips)])


accuracies = {"r = 1": accuracy()}

"""
Second stage: say how much less the encoder is to cost. On some hundred messages,
`calibrate` fits the routers, which have never chosen anything, and the shortcuts
of the tokens that are left out, and chooses a reduction factor for each block. A
decoder reads all tokens, so it asks more of them than a classifier that reads one:
expect less speed here. `generate` goes on as before.
"""

coda.reduction_factor = 2
accuracies["r = 2, not calibrated"] = accuracy()

inputs, _, _ = preprocessor(
    {
        "encoder_text": train_messages[:256],
        "decoder_text": train_slips[:256],
    }
)
print(keras_coda.training.calibrate(coda, inputs, speedup=1.4))
accuracies["calibrated for a speedup of 1.4"] = accuracy()

"""
Now train on as it is, with a smaller learning rate. Without examples of slips,
`keras_coda.training.align` trains to keep what the model wrote before.
"""

fit(
    coda,
    train_messages,
    train_slips,
    epochs=1 if QUICK else 4,
    learning_rate=1e-3,
)
accuracies["calibrated and trained on"] = accuracy()

for name, value in accuracies.items():
    print(f"{name}: {value:.1%} of the slips are right")

"""
## What it routes

The darker a word, the more encoder blocks computed it. That need not be the
words that the slip takes: a word that is left out is still there for the
decoder to read, and for the words that are computed to attend to.
"""

inputs, _, _ = preprocessor(
    {"encoder_text": test_messages[:3], "decoder_text": test_slips[:3]}
)
keras_coda.analysis.highlight_routing(coda, inputs, tokenizer)

"""
## What it gains

Speed depends on the shape of a model and not on its weights, so we can measure
that of a bigger one, with the shape of T5 small, without downloading it.
It reads 512 tokens and writes 8.
"""

big = keras_hub.models.T5Backbone(
    vocabulary_size=1000,
    num_layers=1 if QUICK else 6,
    num_heads=8,
    hidden_dim=512,
    intermediate_dim=1024,
    key_value_dim=64,
)
big_inputs = {
    "encoder_token_ids": np.ones((4, 512), "int32"),
    "encoder_padding_mask": np.ones((4, 512), "int32"),
    "decoder_token_ids": np.ones((4, 8), "int32"),
    "decoder_padding_mask": np.ones((4, 8), "int32"),
}
big = keras_coda.coda_wrap(big, reduction_factor=1, shortcut_dim=64)

for reduction_factor in (1, 4):
    big.reduction_factor = reduction_factor
    seconds = []
    # The first round compiles; the best of the others counts.
    for _ in range(2 if QUICK else 5):
        start = time.perf_counter()
        big.predict(big_inputs, verbose=0)
        seconds.append(time.perf_counter() - start)
    print(f"r = {reduction_factor}: {4 / min(seconds[1:]):.1f} texts/s")

"""
## Save the adapter

The file holds what was trained, without the frozen model. `load_adapter` puts
it into a freshly wrapped model, under any backend; many adapters can take turns
on one model.
"""

coda.save_adapter("driver.safetensors")
print(f"{os.path.getsize('driver.safetensors') / 1e3:.0f} kB")

reloaded = keras_coda.coda_wrap(
    lm, reduction_factor=1, adapter_dim=8, shortcut_dim=16
)
reloaded.load_adapter("driver.safetensors")
print("r =", reloaded.reduction_factor)
print(reloaded.generate(test_messages[0], max_length=8))

"""
## Export it

A SavedModel runs without Keras: in TensorFlow Serving, or as here in plain
TensorFlow. One call computes the logits of the next token after each that is
given, here after none but the start; to write on, a server calls it with what
it has so far.
"""

keras_coda.export(coda, "driver", format="tf_saved_model")

served = tf.saved_model.load("driver")
request = {key: tf.cast(value, tf.int32) for key, value in inputs.items()}
(logits,) = served.serve(request).values()
logits = np.asarray(logits)
for slip, token_id in zip(test_slips, logits[:, 0].argmax(axis=-1)):
    word = tokenizer.detokenize([int(token_id)])
    print(f"{word} ... of: {slip}")
