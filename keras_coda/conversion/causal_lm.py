"""Language models that route their prompts."""

import functools

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_coda.conversion.backend_differences import compiles_generation
from keras_coda.conversion.backend_differences import join
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.layers.set_reduction_factor import forget_compiled
from keras_coda.validation import validate_non_negative_integer

PROMPT_KEYS = {"prompts", "responses"}
# Prompts, and the room for what is generated, are rounded up to multiples.
PROMPT_STEP, ROOM_STEP = 64, 16


class CodaCausalLM(CodaTask):
    """Mixin that makes a KerasHub `CausalLM` one that routes its prompts.

    A prompt is known as a whole, so the best of its tokens can be picked; all
    that follows it is computed in full, with the adapters. `generate` takes
    what it took, and its prompts are routed. In `fit`, `evaluate` and `predict`
    the first `prompt_length` positions are the prompt, and logits are those of
    what follows it: see `prompt_length`.
    """

    def __init__(self, *args, prompt_length=0, **kwargs):
        super().__init__(*args, **kwargs)
        self.prompt_length = prompt_length

    @property
    def prompt_length(self):
        """How many positions, from the first on, are the prompt.

        All responses begin behind it, so shorter prompts are padded on their
        left. Logits are then those of the last position of the prompt and of
        what follows: `(batch_size, n - prompt_length + 1, vocabulary_size)`,
        and labels those of the same positions. With 0, the default, all is
        response: nothing is routed, and logits are those of all positions.
        """
        return self.backbone.conditional_blocks[0].prompt_length

    @prompt_length.setter
    def prompt_length(self, value):
        validate_non_negative_integer("prompt_length", value)
        for block in self.backbone.conditional_blocks:
            block.prompt_length = value
        forget_compiled(self)

    def call(self, inputs, training=None, mask=None):
        hidden = self.backbone(inputs, training=training)
        length = hidden.shape[1]
        if length is not None and length < self.prompt_length:
            raise ValueError(
                "Inputs must be as long as `prompt_length`, or longer. "
                f"Received: prompt_length={self.prompt_length}, and inputs of "
                f"{length} tokens"
            )
        if self.prompt_length:
            hidden = hidden[:, self.prompt_length - 1 :]
        return self.backbone.token_embedding(hidden, reverse=True)

    def get_config(self):
        return {**super().get_config(), "prompt_length": self.prompt_length}

    # === Training ===

    def preprocess_samples(self, x, y=None, sample_weight=None):
        """Makes inputs and labels; also of prompts and responses.

        Args:
            x: texts, or a dict of texts `"prompts"` and `"responses"`: each
                prompt fills the first `prompt_length` positions of the
                preprocessor's `sequence_length`, and labels are those of the
                response.
            y, sample_weight: for inputs that are preprocessed already.
        """
        if not isinstance(x, dict) or not PROMPT_KEYS <= set(x):
            return super().preprocess_samples(x, y, sample_weight)
        preprocessor, width = self.preprocessor, self.prompt_length
        length = getattr(preprocessor, "sequence_length", 0)
        if not 0 < width <= length:
            raise ValueError(
                "Prompts and responses need a preprocessor, and a "
                "`prompt_length` of at least 1 and at most its "
                f"`sequence_length`. Received: prompt_length={width}, "
                f"preprocessor={preprocessor!r} with a sequence_length of "
                f"{length}"
            )
        tokenizer = preprocessor.tokenizer
        packer = functools.partial(
            keras_hub.layers.StartEndPacker,
            start_value=tokenizer.start_token_id,
            end_value=tokenizer.end_token_id,
            pad_value=tokenizer.pad_token_id,
            return_padding_mask=True,
        )
        prompts = packer(width, padding_side="left")(
            tokenizer(x["prompts"]),
            add_start_value=preprocessor.add_start_token,
            add_end_value=False,
        )
        responses = packer(length + 1 - width)(
            tokenizer(x["responses"]),
            add_start_value=False,
            add_end_value=preprocessor.add_end_token,
        )
        token_ids, mask = map(join, prompts, responses)
        return keras.utils.pack_x_y_sample_weight(
            {
                "token_ids": token_ids[..., :-1],
                "padding_mask": mask[..., :-1],
            },
            token_ids[..., width:],
            mask[..., width:],
        )

    # === Generation ===

    def make_generate_function(self):
        self.backbone.warn_of_new_routers()
        if self.generate_function is None:
            self._make_ends()
            compiled = super().make_generate_function()

            def generate(inputs, stop_token_ids=None):
                prompts, room = left_padded(inputs)
                outputs = compiled(
                    keras.tree.map_structure(
                        ops.convert_to_tensor, {**prompts, "room": room}
                    ),
                    stop_token_ids=stop_token_ids,
                )
                return right_padded(inputs, outputs, room, stop_token_ids)

            self.generate_function = generate
        return self.generate_function

    def _make_ends(self):
        """Functions for what is before the first block and behind the last."""
        backbone = self.backbone
        blocks = backbone.conditional_blocks
        first = keras.Model(
            backbone.input, keras.tree.flatten(blocks[0].input)[0]
        )
        last = keras.Model(blocks[-1].output, backbone.output)

        def embed(token_ids):
            mask = ops.ones_like(token_ids)
            return first({"token_ids": token_ids, "padding_mask": mask})

        def logits(hidden):
            return backbone.token_embedding(last(hidden), reverse=True)

        self._embed, self._logits = embed, logits

    def generate_step(self, inputs, stop_token_ids=None):
        """Continues prompts that all end at the same position.

        Args:
            inputs: dict of `token_ids` and `padding_mask` of prompts that are
                padded on their left, of shape `(batch_size, p)`, and `room`, of
                shape `(batch_size, m)`, where m is how many tokens to generate.
            stop_token_ids: optional tuple of the ids to stop at.

        Returns:
            The token ids, of shape `(batch_size, p + m)`.
        """
        prompt, room = inputs["token_ids"], inputs["room"]

        def next(prompt, cache, index):
            # The token before gives the logits of this one.
            index = index - 1
            token = ops.slice(prompt, (0, index), (ops.shape(prompt)[0], 1))
            hidden, cache = self._step(self._embed(token), cache, index)
            logits = self._logits(hidden)
            return ops.squeeze(logits, 1), ops.squeeze(hidden, 1), cache

        return self.sampler(
            next=next,
            prompt=ops.concatenate([prompt, room], axis=1),
            cache=self._prefill(prompt, inputs["padding_mask"], room.shape[1]),
            index=prompt.shape[1],
            mask=ops.concatenate(
                [ops.ones_like(prompt, "bool"), ops.zeros_like(room, "bool")],
                axis=1,
            ),
            stop_token_ids=stop_token_ids,
            model=self,
        )

    def _prefill(self, prompt, mask, room):
        """The cache of prompts, with room for further tokens.

        A dict of `blocks`, the keys and values of each, and `mask`, of shape
        `(batch_size, p + m)`, false at padding.
        """
        mask = ops.cast(mask, "bool")
        inputs = {"token_ids": prompt, "padding_mask": mask}
        pinned = self.backbone.family.pinned(inputs)
        hidden = self._embed(prompt)
        caches = []
        *blocks, last = self.backbone.conditional_blocks
        for block in blocks:
            hidden, cache = block.prefill(hidden, mask, pinned)
            caches.append(cache)
        # Of what the last block does to a prompt, nothing is read.
        caches.append(last.keys_and_values(hidden))
        behind = [[0, 0], [0, room]]
        return {
            "blocks": tuple(
                ops.pad(cache, [[0, 0], *behind, [0, 0], [0, 0]])
                for cache in caches
            ),
            "mask": ops.pad(mask, behind, constant_values=True),
        }

    def _step(self, hidden, cache, index):
        """One token of each row through all blocks."""
        caches = []
        for block, own in zip(
            self.backbone.conditional_blocks, cache["blocks"]
        ):
            hidden, own = block.step(hidden, own, index, cache["mask"])
            caches.append(own)
        return hidden, {"blocks": tuple(caches), "mask": cache["mask"]}


def left_padded(inputs):
    """Prompts that end at the same position, and the room behind them.

    Args:
        inputs: dict of `token_ids` and `padding_mask` as KerasHub makes them,
            of shape `(batch_size, n)`: padded on their right.

    Returns:
        A tuple of such a dict, of arrays `(batch_size, p)`, and an array of
        zeros `(batch_size, m)`, enough for the shortest prompt to grow to n.
    """
    token_ids, mask = _to_arrays(inputs)
    batch_size, n = token_ids.shape
    lengths = mask.sum(axis=1)
    width = _rounded(lengths.max(), PROMPT_STEP)
    columns = np.arange(width) - (width - lengths[:, None])
    is_real = columns >= 0
    moved = np.take_along_axis(token_ids, np.maximum(columns, 0), axis=1)
    prompts = {
        "token_ids": np.where(is_real, moved, 0).astype("int32"),
        "padding_mask": is_real.astype("int32"),
    }
    room = _rounded(n - lengths.min(), ROOM_STEP)
    return prompts, np.zeros((batch_size, room), "int32")


def right_padded(inputs, token_ids, room, stop_token_ids):
    """What `generate` returns: rows that begin at the first position.

    Args:
        inputs: see `left_padded`.
        token_ids: tensor of shape `(batch_size, p + m)`.
        room: array of shape `(batch_size, m)`.
        stop_token_ids: optional tuple of the ids that end a row.

    Returns:
        A dict of tensors `token_ids` and `padding_mask`, `(batch_size, n)`.
    """
    _, mask = _to_arrays(inputs)
    token_ids = ops.convert_to_numpy(token_ids)
    width = token_ids.shape[1] - room.shape[1]
    start = width - mask.sum(axis=1, keepdims=True)
    columns = start + np.arange(mask.shape[1])
    token_ids = np.take_along_axis(token_ids, columns, axis=1)
    padding_mask = np.ones_like(mask)
    if stop_token_ids is not None:
        ends = np.isin(token_ids, list(stop_token_ids)) & ~mask
        padding_mask = np.cumsum(ends, axis=1) - ends == 0
    return {
        "token_ids": ops.convert_to_tensor(token_ids),
        "padding_mask": ops.convert_to_tensor(padding_mask),
    }


def _to_arrays(inputs):
    token_ids = ops.convert_to_numpy(inputs["token_ids"])
    return token_ids, ops.convert_to_numpy(inputs["padding_mask"]).astype(bool)


def _rounded(length, step):
    """A multiple of `step`, where each length is compiled for."""
    if not compiles_generation():
        step = 1
    return max(-(-int(length) // step), 1) * step
