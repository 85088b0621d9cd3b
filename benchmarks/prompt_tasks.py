"""Prompts whose answers need the prompt, for a small language model.

A prompt is a text of Reuters R52, words of it in their order, in which cells of
16 tokens are overwritten by six records, `# name number number`, and a list of
five numbers, `[ 7 3 9 1 5 ]`. Then comes one of four instructions:

- find: `find name`, the two numbers of that record;
- sort: `sort =`, the list in ascending order;
- after: `after word word =`, the two words that follow those two in the text;
- before: the same, but `after word word` stands in front of the text, too.

Every answer ends with a full stop. Training sequences ask seven times, behind
one text, every other batch of them also in front; a prompt asks once. Tokens
are words, numbers up to 99 and signs.
"""

import collections
import functools
from typing import NamedTuple

import numpy as np
import quality_tasks  # noqa: F401, which makes the examples importable

# isort: split
import text_data

SIGNS = ("<pad>", "<s>", "#", "[", "]", "=", ".", "find", "sort", "after")
PADDING, START, RECORD, OPEN, CLOSE, EQUALS, END, FIND, SORT, AFTER = range(10)
NUM_NUMBERS, NUM_NAMES, NUM_WORDS = 100, 200, 1000
FIRST_NUMBER = len(SIGNS)
FIRST_NAME = FIRST_NUMBER + NUM_NUMBERS
FIRST_WORD = FIRST_NAME + NUM_NAMES
VOCABULARY_SIZE = FIRST_WORD + NUM_WORDS

KINDS = ("find", "sort", "after", "before")
NUM_RECORDS, LIST_SIZE, CELL = 6, 5, 16
# With the start, and so that every prompt has at most PROMPT_LENGTH tokens.
TEXT_LENGTH = 252
PROMPT_LENGTH = 256
RESPONSE_LENGTH = LIST_SIZE + 1
QUESTIONS = ("find",) * 3 + ("sort",) + ("after",) * 2
NUM_PLACES = 3
# The start, and a question that stands in front of a text.
FRONT = 4


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
        tokens: ids `(size, TEXT_LENGTH)`.
        records: `(size, NUM_RECORDS, 3)`, a name and two numbers each.
        lists: `(size, LIST_SIZE)`.
        places: `(size, NUM_PLACES)`, where two words begin that are once in
            their text. The first may be asked for in front of the text.
    """

    tokens: np.ndarray
    records: np.ndarray
    lists: np.ndarray
    places: np.ndarray


class Examples:
    """Makes examples of a part of the texts.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: of what is drawn.
    """

    def __init__(self, split, seed=0):
        self.words = read_words(split)
        self.rng = np.random.default_rng(seed)

    def texts(self, size, asks_before=False):
        """Texts, some of which have a question in front."""
        rng = self.rng
        starts = rng.integers(0, len(self.words) - TEXT_LENGTH, (size, 1))
        tokens = self.words[starts + np.arange(TEXT_LENGTH)]
        tokens[:, 0] = START
        is_text = np.ones(tokens.shape, bool)
        is_text[:, :FRONT] = False
        names = FIRST_NAME + draw(rng, size, NUM_NAMES, NUM_RECORDS)
        values = FIRST_NUMBER + rng.integers(
            0, NUM_NUMBERS, (size, NUM_RECORDS, 2)
        )
        records = np.concatenate([names[..., None], values], axis=-1)
        lists = FIRST_NUMBER + draw(rng, size, NUM_NUMBERS, LIST_SIZE)
        inserted = [
            np.insert(records[:, index], 0, RECORD, axis=1)
            for index in range(NUM_RECORDS)
        ]
        ends = np.full((size, 1), OPEN), np.full((size, 1), CLOSE)
        inserted.append(np.concatenate([ends[0], lists, ends[1]], axis=1))
        cells = draw(rng, size, TEXT_LENGTH // CELL, len(inserted))
        for cell, new in zip(cells.T, inserted):
            offset = rng.integers(FRONT, CELL - new.shape[1], size)
            columns = (cell * CELL + offset)[:, None] + np.arange(new.shape[1])
            np.put_along_axis(tokens, columns, new, axis=1)
            np.put_along_axis(is_text, columns, False, axis=1)
        places = self.unique_places(tokens, is_text)
        if asks_before:
            tokens[:, 1] = AFTER
            tokens[:, 2:FRONT] = words_at(tokens, places[:, 0])[:, :2]
        return Texts(tokens, records, lists, places)

    def ask(self, kind, texts):
        """Questions and answers of a kind about texts, `(size, length)`."""
        size = len(texts.tokens)
        rows = np.arange(size)
        signs = {
            sign: np.full(size, sign)
            for sign in (EQUALS, END, FIND, SORT, AFTER)
        }
        if kind == "find":
            chosen = self.rng.integers(0, NUM_RECORDS, size)
            record = texts.records[rows, chosen]
            question, answer = [signs[FIND], record[:, 0]], record[:, 1:].T
        elif kind == "sort":
            question = [signs[SORT], signs[EQUALS]]
            answer = np.sort(texts.lists, axis=1).T
        else:
            chosen = np.zeros(size, int)
            if kind == "after":
                chosen = self.rng.integers(0, NUM_PLACES, size)
            words = words_at(texts.tokens, texts.places[rows, chosen])
            first, second, *answer = words.T
            question = [signs[AFTER], first, second, signs[EQUALS]]
        return np.stack(question, 1), np.stack([*answer, signs[END]], 1)

    def unique_places(self, tokens, is_text):
        """Where two words begin that are once in a text, and two follow.

        Returns:
            Positions `(size, NUM_PLACES)`.
        """
        pairs = tokens[:, :-3] * VOCABULARY_SIZE + tokens[:, 1:-2]
        others = tokens[:, :-1] * VOCABULARY_SIZE + tokens[:, 1:]
        counts = (pairs[:, :, None] == others[:, None, :]).sum(axis=-1)
        is_whole = np.logical_and.reduce(
            [is_text[:, i : is_text.shape[1] - 3 + i] for i in range(4)]
        )
        chances = self.rng.random(pairs.shape) * (is_whole & (counts == 1))
        return np.argsort(-chances, axis=1)[:, :NUM_PLACES]

    def sequences(self, size, asks_before=False):
        """Texts with seven questions and answers each.

        Returns:
            A tuple of token ids `(size, n)` and which tokens are of an answer.
        """
        texts = self.texts(size, asks_before)
        parts = [texts.tokens]
        are_answers = [np.zeros(texts.tokens.shape, bool)]
        kinds = QUESTIONS + ("before" if asks_before else "after",)
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


def words_at(tokens, places):
    """Four of each row, `(size, 4)`."""
    columns = places[:, None] + np.arange(4)
    return np.take_along_axis(tokens, columns, axis=1)


def draw(rng, size, high, count):
    """So many different integers below `high`, `(size, count)`."""
    return rng.random((size, high)).argsort(axis=1)[:, :count]
