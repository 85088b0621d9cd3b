"""Prompts whose answers need the prompt, for a small language model.

A prompt is a text of Reuters R52, words of it in their order, in which cells of
16 tokens are overwritten by six records, `# name number number`, and a list of
five numbers, `[ 7 3 9 1 5 ]`. Then comes one of three instructions:

- find: `find name =`, the two numbers of that record;
- sort: `sort =`, the list in ascending order;
- after: `after word word =`, the two words that follow those two in the text.

Every answer ends with a full stop. Training sequences ask seven times, behind
one text; a prompt asks once. Tokens are words, numbers up to 99 and signs.
"""

import collections
import functools

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

KINDS = ("find", "sort", "after")
NUM_RECORDS, LIST_SIZE, CELL = 6, 5, 16
# With the start, and so that every prompt has at most PROMPT_LENGTH tokens.
TEXT_LENGTH = 252
PROMPT_LENGTH = 256
RESPONSE_LENGTH = LIST_SIZE + 1
QUESTIONS = ("find",) * 3 + ("sort",) + ("after",) * 3


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


class Examples:
    """Makes examples of a part of the texts.

    Args:
        split: `"train"`, `"validation"` or `"test"`.
        seed: of what is drawn.
    """

    def __init__(self, split, seed=0):
        self.words = read_words(split)
        self.rng = np.random.default_rng(seed)

    def texts(self, size):
        """Texts with their records and lists.

        Returns:
            A tuple of token ids `(size, TEXT_LENGTH)`, records
            `(size, NUM_RECORDS, 3)`, lists `(size, LIST_SIZE)`, and which
            tokens are of a text `(size, TEXT_LENGTH)`.
        """
        rng = self.rng
        starts = rng.integers(0, len(self.words) - TEXT_LENGTH, (size, 1))
        tokens = self.words[starts + np.arange(TEXT_LENGTH)]
        tokens[:, 0] = START
        is_text = np.ones(tokens.shape, bool)
        is_text[:, 0] = False
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
            offset = rng.integers(1, CELL - new.shape[1], size)
            columns = (cell * CELL + offset)[:, None] + np.arange(new.shape[1])
            np.put_along_axis(tokens, columns, new, axis=1)
            np.put_along_axis(is_text, columns, False, axis=1)
        return tokens, records, lists, is_text

    def ask(self, kind, tokens, records, lists, is_text):
        """Questions and answers of a kind about texts, `(size, length)`."""
        size = len(tokens)
        rows = np.arange(size)
        signs = {
            sign: np.full(size, sign)
            for sign in (EQUALS, END, FIND, SORT, AFTER)
        }
        if kind == "find":
            record = records[rows, self.rng.integers(0, NUM_RECORDS, size)]
            question = [signs[FIND], record[:, 0], signs[EQUALS]]
            answer = [record[:, 1], record[:, 2]]
        elif kind == "sort":
            question = [signs[SORT], signs[EQUALS]]
            answer = list(np.sort(lists, axis=1).T)
        else:
            places = self.unique_places(tokens, is_text)
            four = tokens[rows[:, None], places[:, None] + np.arange(4)]
            question = [signs[AFTER], four[:, 0], four[:, 1], signs[EQUALS]]
            answer = [four[:, 2], four[:, 3]]
        return np.stack(question, 1), np.stack([*answer, signs[END]], 1)

    def unique_places(self, tokens, is_text):
        """Where two words start that are once in their text, and two follow."""
        pairs = tokens[:, :-3] * VOCABULARY_SIZE + tokens[:, 1:-2]
        others = tokens[:, :-1] * VOCABULARY_SIZE + tokens[:, 1:]
        counts = (pairs[:, :, None] == others[:, None, :]).sum(axis=-1)
        is_whole = np.logical_and.reduce(
            [is_text[:, i : is_text.shape[1] - 3 + i] for i in range(4)]
        )
        chances = self.rng.random(pairs.shape) * (is_whole & (counts == 1))
        return chances.argmax(axis=1)

    def sequences(self, size):
        """Texts with seven questions and answers each.

        Returns:
            A tuple of token ids `(size, n)` and which tokens are of an answer.
        """
        text = self.texts(size)
        parts, are_answers = [text[0]], [np.zeros(text[0].shape, bool)]
        for index in self.rng.permutation(len(QUESTIONS)):
            for number, part in enumerate(self.ask(QUESTIONS[index], *text)):
                parts.append(part)
                are_answers.append(np.full(part.shape, number == 1))
        return np.concatenate(parts, 1), np.concatenate(are_answers, 1)

    def prompts(self, kind, size):
        """Prompts with one question, in their place before the answers.

        Returns:
            A dict of the arrays `token_ids` and `padding_mask`
            `(size, PROMPT_LENGTH + RESPONSE_LENGTH)`, padded on both sides.
        """
        text = self.texts(size)
        question, answer = self.ask(kind, *text)
        prompt = np.concatenate([text[0], question], axis=1)
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
