"""Prompts whose answers need the prompt, for a small language model.

A prompt is a text of Reuters R52, words of it in their order, somewhere in
which stands a list of five numbers, `[ 7 3 9 1 5 ]`. Then comes one of three
instructions:

- sort: `sort`, the list in ascending order;
- after: `after word`, the five words that follow it in the text;
- before: the same, but `after word` stands in front of the text, too.

Every answer ends with a full stop. Training sequences ask NUM_QUESTIONS times,
behind one text, every other batch of them also in front; a prompt asks once.
Tokens are words, numbers and signs.
"""

import collections
import functools
from typing import NamedTuple

import numpy as np
import quality_tasks  # noqa: F401, which makes the examples importable
from numpy.lib.stride_tricks import sliding_window_view

# isort: split
import text_data

SIGNS = ("<pad>", "<s>", "[", "]", ".", "sort", "after")
PADDING, START, OPEN, CLOSE, END, SORT, AFTER = range(len(SIGNS))
NUM_NUMBERS, NUM_WORDS = 100, 500
FIRST_NUMBER = len(SIGNS)
FIRST_WORD = FIRST_NUMBER + NUM_NUMBERS
VOCABULARY_SIZE = FIRST_WORD + NUM_WORDS

KINDS = ("sort", "after", "before")
ANSWER_SIZE = 5
# With the start, and so that every prompt has at most PROMPT_LENGTH tokens.
TEXT_LENGTH = 126
PROMPT_LENGTH = 128
# With the end.
RESPONSE_LENGTH = ANSWER_SIZE + 1
NUM_QUESTIONS = 8
# Words of a text that may be asked for.
NUM_PLACES = 8
# The start, and a question that stands in front of a text.
FRONT = 3


@functools.cache
def read_words(split):
    """The commonest words of the training split, in a split's texts, as ids."""
    data = text_data.read_reuters(name="r52")
    counts = collections.Counter(
        word for text in data.train_texts for word in text.split()
    )
    common = [word for word, _ in counts.most_common(NUM_WORDS)]
    ids = {word: FIRST_WORD + index for index, word in enumerate(common)}
    texts = data.test_texts if split == "test" else data.train_texts
    words = [
        ids[word] for text in texts for word in text.split() if word in ids
    ]
    if split == "train":
        return np.array(words[: len(words) * 9 // 10])
    if split == "validation":
        return np.array(words[len(words) * 9 // 10 :])
    return np.array(words)


class Texts(NamedTuple):
    """Texts, and what can be asked about them.

    Attributes:
        tokens: ids `(size, text_length)`.
        lists: `(size, ANSWER_SIZE)`.
        places: `(size, NUM_PLACES)`, of words that are once in their text.
            The first may be asked for in front of the text.
    """

    tokens: np.ndarray
    lists: np.ndarray
    places: np.ndarray


class Examples:
    """Makes examples of a part of the texts.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: of what is drawn.
        text_length: of texts, with the start.
    """

    def __init__(self, split, seed=0, text_length=TEXT_LENGTH):
        self.words = read_words(split)
        self.rng = np.random.default_rng(seed)
        self.text_length = text_length

    def texts(self, size, asks_before=False):
        """Texts, some of which have a question in front."""
        rng = self.rng
        starts = rng.integers(0, len(self.words) - self.text_length, (size, 1))
        tokens = self.words[starts + np.arange(self.text_length)]
        tokens[:, 0] = START
        is_text = np.ones(tokens.shape, bool)
        is_text[:, :FRONT] = False
        lists = FIRST_NUMBER + draw(rng, size, NUM_NUMBERS, ANSWER_SIZE)
        ends = [0, ANSWER_SIZE]
        inserted = np.insert(lists, ends, [OPEN, CLOSE], axis=1)
        width = inserted.shape[1]
        starts = rng.integers(FRONT, self.text_length - width + 1, (size, 1))
        columns = starts + np.arange(width)
        np.put_along_axis(tokens, columns, inserted, axis=1)
        np.put_along_axis(is_text, columns, False, axis=1)
        places = self.unique_places(tokens, is_text)
        if asks_before:
            tokens[:, 1] = AFTER
            tokens[:, 2] = tokens[np.arange(size), places[:, 0]]
        return Texts(tokens, lists, places)

    def ask(self, kind, texts):
        """Questions and answers of a kind about texts, `(size, length)`."""
        size = len(texts.tokens)
        if kind == "sort":
            question = np.full((size, 1), SORT)
            answer = np.sort(texts.lists, axis=1)
        else:
            chosen = np.zeros((size, 1), int)
            if kind == "after":
                chosen = self.rng.integers(0, NUM_PLACES, (size, 1))
            place = np.take_along_axis(texts.places, chosen, axis=1)
            columns = place + np.arange(ANSWER_SIZE + 1)
            words = np.take_along_axis(texts.tokens, columns, axis=1)
            question = np.insert(words[:, :1], 0, AFTER, axis=1)
            answer = words[:, 1:]
        return question, np.insert(answer, ANSWER_SIZE, END, axis=1)

    def unique_places(self, tokens, is_text):
        """Of words that are once in a text, and that an answer follows.

        Returns:
            Positions `(size, NUM_PLACES)`.
        """
        words = tokens[:, :-ANSWER_SIZE]
        counts = (words[:, :, None] == tokens[:, None, :]).sum(axis=-1)
        windows = sliding_window_view(is_text, ANSWER_SIZE + 1, axis=1)
        is_whole = windows.all(axis=-1)
        chances = self.rng.random(words.shape) * (is_whole & (counts == 1))
        return np.argsort(-chances, axis=1)[:, :NUM_PLACES]

    def sequences(self, size, asks_before=False):
        """Texts with their questions and answers.

        Returns:
            A tuple of token ids `(size, n)` and which tokens are of an answer.
        """
        texts = self.texts(size, asks_before)
        parts = [texts.tokens]
        are_answers = [np.zeros(texts.tokens.shape, bool)]
        kinds = ["after"] * (NUM_QUESTIONS - 2) + ["sort"]
        kinds.append("before" if asks_before else "after")
        for index in self.rng.permutation(len(kinds)):
            for number, part in enumerate(self.ask(kinds[index], texts)):
                parts.append(part)
                are_answers.append(np.full(part.shape, number == 1))
        return np.concatenate(parts, 1), np.concatenate(are_answers, 1)

    def prompts(self, kind, size):
        """Prompts with one question, in their place before the answers.

        Returns:
            A dict of the arrays `token_ids` and `padding_mask`
            `(size, PROMPT_LENGTH + RESPONSE_LENGTH)`, padded on both sides.
        """
        texts = self.texts(size, asks_before=kind == "before")
        question, answer = self.ask(kind, texts)
        prompt = np.concatenate([texts.tokens, question], axis=1)
        token_ids = np.full((size, PROMPT_LENGTH + RESPONSE_LENGTH), PADDING)
        start = PROMPT_LENGTH - prompt.shape[1]
        token_ids[:, start:PROMPT_LENGTH] = prompt
        stop = PROMPT_LENGTH + answer.shape[1]
        token_ids[:, PROMPT_LENGTH:stop] = answer
        padding_mask = np.zeros(token_ids.shape, "int32")
        padding_mask[:, start:stop] = 1
        return {
            "token_ids": token_ids.astype("int32"),
            "padding_mask": padding_mask,
        }


def draw(rng, size, high, count):
    """So many different integers below `high`, `(size, count)`."""
    return rng.random((size, high)).argsort(axis=1)[:, :count]
