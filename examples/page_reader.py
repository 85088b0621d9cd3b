"""A Transformer of patches that reads a field of a large page.

A page of n patches, most of them empty, and the question which value stands
beside a label: see page_data.py. The model is made like Pix2Struct's encoder
(Lee et al., 2023, arXiv:2210.03347): patches at any resolution, embeddings of
their absolute rows and columns, and blocks as in the vision models of the CoDA
paper, with multi-query attention and a gated network. Unlike there, the
question is a token in front of the patches, and no header on the page; the
answer is read from that token.

    KERAS_BACKEND=jax python examples/page_reader.py

trains a small one in some minutes, makes it compute fewer patches, and prints
how many questions it answers. benchmarks/pages.py has pages of 4,096 patches.
"""

import argparse

import keras
import keras_hub
import numpy as np
from keras import ops
from page_data import LABELS
from page_data import PAPER
from page_data import PATCH_SIZE
from page_data import WORDS
from page_data import PageBatches

import keras_coda
from keras_coda.conversion import EncoderBlock
from keras_coda.conversion import Family
from keras_coda.conversion import Parts
from keras_coda.conversion import register_family
from keras_coda.layers import TransformerBlock

# At most so many rows, and so many columns.
MAX_SIZE = 96


def waves(shape, dtype=None):
    """Random waves over positions: close ones have similar embeddings."""
    size, dim = shape
    rng = keras.random.SeedGenerator()
    frequencies = keras.random.uniform((dim,), 0.0, 1.0, seed=rng) ** 2
    phases = keras.random.uniform((dim,), 0.0, 2 * np.pi, seed=rng)
    positions = ops.arange(size, dtype="float32")[:, None]
    return ops.cast(0.5 * ops.sin(2 * positions * frequencies + phases), dtype)


@keras.saving.register_keras_serializable(package="pages")
class PageEmbedding(keras.layers.Layer):
    """Embeds questions, and patches with their places.

    Args:
        hidden_dim: int. Width of the embeddings.
        **kwargs: see `keras.layers.Layer`.
    """

    def __init__(self, hidden_dim, **kwargs):
        super().__init__(**kwargs)
        self.hidden_dim = hidden_dim
        self.question_embedding = self._embedding(len(LABELS), "questions")
        self.row_embedding = self._embedding(MAX_SIZE, "rows", waves)
        self.column_embedding = self._embedding(MAX_SIZE, "columns", waves)
        # Two layers, so that a router of the first block, which is linear, can
        # tell text from photographs.
        self.patch_intermediate = keras.layers.Dense(
            hidden_dim,
            activation="gelu",
            dtype=self.dtype_policy,
            name="patch_intermediate",
        )
        self.patch_projection = keras.layers.Dense(
            hidden_dim, dtype=self.dtype_policy, name="patch_projection"
        )

    def _embedding(self, size, name, initializer="uniform"):
        return keras.layers.Embedding(
            size,
            self.hidden_dim,
            embeddings_initializer=initializer,
            dtype=self.dtype_policy,
            name=name,
        )

    def build(self, question_shape, *shapes):
        for layer in (
            self.question_embedding,
            self.row_embedding,
            self.column_embedding,
        ):
            layer.build(question_shape)
        self.patch_intermediate.build((None, None, PATCH_SIZE**2))
        self.patch_projection.build((None, None, self.hidden_dim))

    def call(self, question, patches, rows, columns):
        # Near 0 where the page is empty.
        ink = (PAPER - ops.cast(patches, self.compute_dtype)) / 64
        patches = self.patch_projection(self.patch_intermediate(ink))
        places = self.row_embedding(rows) + self.column_embedding(columns)
        return ops.concatenate(
            [self.question_embedding(question), patches + places], axis=1
        )

    def compute_output_shape(self, question_shape, patches_shape, *shapes):
        return (question_shape[0], None, self.hidden_dim)

    def get_config(self):
        return {**super().get_config(), "hidden_dim": self.hidden_dim}


@keras.saving.register_keras_serializable(package="pages")
class PageBackbone(keras_hub.models.Backbone):
    """An encoder of the question and the patches of a page.

    Its inputs are a dict: `question`, int positions in LABELS `(batch_size,
    q)`; `patches`, pixels from 0 to 255 `(batch_size, n, 256)`; their `rows`
    and `columns` and the `padding_mask`, false at padding, `(batch_size, n)`.
    It returns a state for each question and patch, `(batch_size, q + n,
    hidden_dim)`.

    Args:
        num_layers, hidden_dim, num_heads, intermediate_dim: int, of the
            blocks, whose heads share one key and one value.
        dtype: optional dtype policy.
        **kwargs: `name` and `trainable`.
    """

    def __init__(
        self,
        num_layers=6,
        hidden_dim=192,
        num_heads=3,
        intermediate_dim=384,
        dtype=None,
        **kwargs,
    ):
        # === Layers ===
        self.embedding = PageEmbedding(
            hidden_dim, dtype=dtype, name="embedding"
        )
        self.transformer_layers = [
            TransformerBlock(
                num_heads,
                intermediate_dim,
                num_key_value_heads=1,
                dtype=dtype,
                name=f"layer_{index}",
            )
            for index in range(num_layers)
        ]
        self.final_norm = keras.layers.RMSNormalization(
            dtype=dtype, name="final_norm"
        )

        # === Functional Model ===
        inputs = {
            name: keras.Input(shape, dtype=kind, name=name)
            for name, shape, kind in (
                ("question", (None,), "int32"),
                ("patches", (None, PATCH_SIZE**2), "uint8"),
                ("rows", (None,), "int32"),
                ("columns", (None,), "int32"),
                ("padding_mask", (None,), "bool"),
            )
        }
        embedded = [inputs[name] for name in list(inputs)[:-1]]
        outputs = self.embedding(*embedded)
        mask = ops.concatenate(
            [
                ops.ones_like(inputs["question"], dtype="bool"),
                inputs["padding_mask"],
            ],
            axis=1,
        )
        for layer in self.transformer_layers:
            outputs = layer(outputs, padding_mask=mask)
        outputs = self.final_norm(outputs)
        super().__init__(inputs, outputs, dtype=dtype, **kwargs)

        # === Config ===
        self.num_layers = num_layers
        self.hidden_dim = hidden_dim
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim

    def get_config(self):
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "hidden_dim": self.hidden_dim,
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
        }


# === Routing ===


class GatedFeedforward(keras.layers.Layer):
    """The feedforward network of a `TransformerBlock`, shared with it."""

    def __init__(self, block):
        super().__init__(dtype=block.dtype_policy, name="feedforward")
        self.intermediate = block.intermediate
        self.gate = block.gate
        self.output_projection = block.output_projection
        self.built = True

    def call(self, inputs):
        hidden = self.intermediate(inputs) * self.gate(inputs)
        return self.output_projection(hidden)


class PageBlock(EncoderBlock):
    """A `TransformerBlock` of the backbone, for routed rows."""

    def __init__(self, layer, parts, **kwargs):
        super().__init__(layer, parts, **kwargs)
        # What `keras_coda.analysis.flops` counts.
        self.kernels = layer.kernels

    def attend(self, routed, training=None):
        return self.attention(
            routed.queries,
            routed.context,
            attention_mask=routed.mask,
            training=training,
        )


register_family(
    Family(
        backbone=PageBackbone,
        parts=Parts(
            attention="attention",
            attention_norm="attention_norm",
            feedforward_norm="feedforward_norm",
            feedforward={"feedforward": GatedFeedforward},
        ),
        block_cls=PageBlock,
        num_prefix_tokens=1,
        pooled="question",
    )
)


# === Models ===


def make_reader(backbone):
    """A model that answers the first question, with logits of WORDS."""
    head = keras.layers.Dense(len(WORDS), dtype="float32", name="word")
    return _model_around(backbone, lambda states: head(states[:, 0]))


def make_trainer(reader, num_questions):
    """One with the weights of a reader that answers several questions.

    It also answers for each patch what hints say. Without them it takes long to
    learn what a word looks like, and that a label belongs to what is beside it.
    """
    head = reader.get_layer("word")
    answers = keras.layers.Identity(name="answers", dtype="float32")
    hints = keras.layers.Identity(name="hints", dtype="float32")

    def read(states):
        logits = head(states)
        return {
            "answers": answers(logits[:, :num_questions]),
            "hints": hints(logits[:, num_questions:]),
        }

    return _model_around(backbone_of(reader), read)


def backbone_of(reader):
    return next(
        layer
        for layer in reader.layers
        if isinstance(layer, keras_hub.models.Backbone)
    )


def _model_around(backbone, read):
    inputs = keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        backbone.input,
    )
    return keras.Model(inputs, read(backbone(inputs)))


def accuracy(reader, num_batches, seed, **page_arguments):
    """The share of questions that a reader answers."""
    pages = PageBatches(num_batches, seed, **page_arguments)
    are_right = []
    for inputs, targets in (pages[index] for index in range(num_batches)):
        answers = reader.predict_on_batch(inputs).argmax(axis=-1)
        are_right.append(answers == targets["answers"][:, 0])
    return float(np.mean(are_right))


# === Training ===


def train(
    reader, num_steps, seed, learning_rate=1e-3, verbose=2, **page_arguments
):
    """Trains a dense reader on pages that are new in every step.

    Args:
        reader: what `make_reader` returned.
        num_steps: int.
        seed: int. Of the pages.
        learning_rate: float. Its peak.
        verbose: of `keras.Model.fit`. Defaults to a line for each tenth.
        **page_arguments: of `page_data.make_batch`.

    Returns:
        A list of the accuracies of answers in training, of each tenth.
    """
    model = make_trainer(reader, page_arguments.get("num_questions", 1))
    model.compile(
        optimizer=make_optimizer(learning_rate, num_steps),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
        weighted_metrics={"answers": ["accuracy"], "hints": ["accuracy"]},
    )
    num_epochs = min(num_steps, 10)
    history = model.fit(
        PageBatches(
            num_steps // num_epochs, seed, with_weights, **page_arguments
        ),
        epochs=num_epochs,
        verbose=verbose,
    )
    return history.history["answers_accuracy"]


def with_weights(inputs, targets):
    """A batch in which patches without a line count little."""
    weights = {
        "answers": np.ones(targets["answers"].shape, "float32"),
        "hints": np.where(targets["hints"] > 0, 1.0, 0.02).astype("float32"),
    }
    return inputs, targets, weights


def make_optimizer(learning_rate, num_steps):
    """AdamW with a tenth of the steps to warm up, then cosine decay."""
    num_warmup = max(num_steps // 10, 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        max(num_steps - num_warmup, 1),
        warmup_target=learning_rate,
        warmup_steps=num_warmup,
    )
    return keras.optimizers.AdamW(
        schedule, weight_decay=0.0, global_clipnorm=1.0
    )


# === Script ===


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--num-patches", type=int, default=256, help="of a page")
    add("--num-kept", type=int, default=40, help="of a page, at first")
    add("--steps", type=int, default=1000, help="of each kind of hint")
    add("--batch-size", type=int, default=32)
    add("--reduction-factors", type=int, nargs="+", default=[2, 4, 8])
    return parser.parse_args(arguments)


def main(arguments=None):
    arguments = parse_arguments(arguments)
    pages = {
        "num_patches": arguments.num_patches,
        "batch_size": arguments.batch_size,
    }
    keras.utils.set_random_seed(0)
    reader = make_reader(
        PageBackbone(
            num_layers=3, hidden_dim=96, num_heads=3, intermediate_dim=192
        )
    )
    for seed, (hint, num_kept, num_steps) in enumerate(
        [
            ("words", arguments.num_kept, arguments.steps),
            ("lines", arguments.num_kept, arguments.steps),
            ("lines", None, arguments.steps // 10),
        ]
    ):
        train(
            reader,
            max(num_steps, 1),
            seed,
            learning_rate=2e-3,
            num_questions=4,
            hint=hint,
            num_shown=num_kept,
            **pages,
        )
    print(f"dense: {accuracy(reader, 8, seed=10, **pages):.1%}")

    coda = keras_coda.coda_wrap(
        reader, reduction_factor=1, adapter_dim=32, shortcut_dim=64
    )
    unlabelled = PageBatches(4, 11, lambda inputs, _: inputs, **pages)
    keras_coda.training.calibrate(
        coda, [unlabelled[index] for index in range(4)], are_logits=True
    )
    for factor in arguments.reduction_factors:
        keras_coda.set_reduction_factor(coda, factor)
        print(f"r = {factor}: {accuracy(coda, 8, seed=10, **pages):.1%}")


if __name__ == "__main__":
    main()
