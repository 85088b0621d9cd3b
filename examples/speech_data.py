"""Speech with its texts for the examples, and how well it is written down.

`espeak-ng`, a Debian package, reads parts of sentences of Reuters R8.
"""

import collections
import io
import math
import random
import re
import string
import subprocess
import wave

import numpy as np
import text_data

VOICES = ("en-us", "en-us+m1", "en-us+m7", "en-us+f2")
WORDS_PER_MINUTE = (130, 150)
# Between words, in 10 ms. The voice is hard to understand without.
PAUSE = 3
# Whisper writes them as digits, or in another way than Reuters.
NOT_SPOKEN = set(
    "two three four five six seven eight nine ten eleven twelve twenty thirty "
    "forty fifty hundred thousand million billion trillion percent per cent "
    "corp inc co ltd dlr dlrs rev revs avg oper reuter nil".split()
)
# A sentence does not end with them.
NOT_LAST = set(
    "a an and are as at be been but by for from had has have he if in is it "
    "its may not of on or our said so some than that the their there these "
    "they this to under was were which who will with would".split()
)


def make_speech(part, size, num_sentences=1):
    """Sounds and texts of utterances.

    Args:
        part: `"calibration"`, `"validation"` or `"test"`.
        size: int. Number of utterances. More begin with the same.
        num_sentences: int. In each utterance: one takes 3 to 8 seconds.

    Returns:
        A tuple of a list of arrays, 16,000 samples a second, and a list of
        texts.
    """
    sentences = make_texts(part, size * num_sentences)
    texts = [
        ". ".join(sentences[start : start + num_sentences])
        for start in range(0, len(sentences), num_sentences)
    ]
    sounds = []
    for index, text in enumerate(texts):
        voice = VOICES[index % len(VOICES)]
        speed = WORDS_PER_MINUTE[index // len(VOICES) % len(WORDS_PER_MINUTE)]
        sounds.append(speak(text, voice, speed))
    return sounds, texts


def make_texts(part, size):
    """Runs of 8 to 16 common words, each from a document of its own."""
    data = text_data.read_reuters()
    counts = collections.Counter(
        word for text in data.train_texts for word in set(text.split())
    )
    train = list(dict.fromkeys(data.train_texts))
    documents = {
        "calibration": train[::2],
        "validation": train[1::2],
        "test": list(dict.fromkeys(data.test_texts)),
    }[part]
    generator = random.Random(part)
    generator.shuffle(documents)

    def is_spoken(word):
        return (
            counts[word] >= 30
            and word not in NOT_SPOKEN
            and (word == "a" or len(word) > 1 and re.search("[aeiouy]", word))
        )

    texts = []
    for document in documents:
        words = document.split()
        length = generator.randint(8, 16)
        for start in range(len(words) - length):
            run = words[start : start + length]
            # Reuters R8 has no full stops, but this is how sentences begin.
            if (
                run[0] in ("the", "it", "he", "they")
                and "said" in run[1:6]
                and run[-1] not in NOT_LAST
                and all(map(is_spoken, run))
            ):
                texts.append(" ".join(run))
                break
        if len(texts) == size:
            return texts
    raise ValueError(f"There are {len(texts)} texts. Received: size={size}")


def speak(text, voice, words_per_minute):
    """Samples at 16 kHz, of 30 seconds at most."""
    pause = ("-g", str(PAUSE))
    samples, rate = synthesize(text, voice, words_per_minute, *pause)
    spectrum = np.fft.rfft(samples, n=30 * rate)
    # The lower part of the spectrum is the same sound, sampled less often.
    resampled = np.fft.irfft(spectrum[: 15 * 16000 + 1], n=30 * 16000)
    length = math.ceil(len(samples) * 16000 / rate)
    return (resampled[:length] * 16000 / rate).astype("float32")


def synthesize(text, voice, words_per_minute, *options):
    """What espeak-ng says, of 30 seconds at most.

    Returns:
        A tuple of samples in [-1, 1] and their number in a second.
    """
    command = ["espeak-ng", "-v", voice, "-s", str(words_per_minute)]
    command += [*options, "--stdout", text]
    try:
        process = subprocess.run(command, capture_output=True, check=True)
    except FileNotFoundError as error:
        raise text_data.DataError(
            "espeak-ng is not installed. Run `apt-get install espeak-ng`."
        ) from error
    with wave.open(io.BytesIO(process.stdout)) as file:
        rate = file.getframerate()
        # The header has no length when the output is a pipe.
        samples = np.frombuffer(file.readframes(30 * rate), "int16")
    return samples / 2**15, rate


def word_error_rate(references, texts):
    import jiwer

    return jiwer.wer(list(map(plain, references)), list(map(plain, texts)))


def plain(text):
    """Lower case, without punctuation."""
    text = text.lower().replace("-", " ")
    return text.translate(str.maketrans("", "", string.punctuation)).strip()
