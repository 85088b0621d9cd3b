"""Language models that route their prompts."""

import functools

import keras
import keras_hub
import numpy as np
from keras import ops

from keras_coda.backend_differences import compiles_generation
from keras_coda.backend_differences import join
from keras_coda.conversion.coda_task import CodaTask
from keras_coda.ops.masking import mask_scores
from keras_coda.validation import validate_non_negative_integer

PROMPT_KEYS = {"prompts", "responses"}
# Prompts, and the room for what is generated, are rounded up to multiples of
# it where each length is compiled for.
STEP = 64


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
        self.backbone.forget_compiled()

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
                prompts = left_padded(inputs)
                outputs = compiled(
                    keras.tree.map_structure(ops.convert_to_tensor, prompts),
                    stop_token_ids=stop_token_ids,
                )
                return right_padded(inputs, prompts, outputs, stop_token_ids)

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
            inputs: what `left_padded` returns.
            stop_token_ids: optional tuple of the ids to stop at.

        Returns:
            The token ids, of shape `(batch_size, p + m)`, where the prompts
            begin at `offset` and end at `offset + p`.
        """
        prompt, offset = inputs["token_ids"], inputs["offset"]
        start = prompt.shape[1] + offset
        has_ended = make_has_ended(inputs, start, stop_token_ids)
        # What rows that have ended go on with: it ends them for the sampler.
        padding = 0 if stop_token_ids is None else stop_token_ids[0]
        is_padding = ops.arange(self.backbone.vocabulary_size) == padding

        def next(prompt, cache, index):
            # The token before gives the logits of this one.
            before = index - 1
            token = ops.slice(prompt, (0, before), (ops.shape(prompt)[0], 1))
            hidden, cache = self._step(
                self._embed(token), cache, before, before - offset
            )
            goes_on = ops.logical_not(has_ended(prompt, index))
            logits = mask_scores(
                ops.squeeze(self._logits(hidden), 1),
                ops.logical_or(goes_on, is_padding),
            )
            return logits, ops.squeeze(hidden, 1), cache

        ids = ops.concatenate([prompt, inputs["room"]], axis=1)
        ids = ops.slice_update(ops.zeros_like(ids), (0, offset), prompt)
        columns = ops.arange(ids.shape[1], dtype="int32")
        return self.sampler(
            next=next,
            prompt=ids,
            cache=self._prefill(inputs),
            index=start,
            mask=ops.broadcast_to(columns < start, ops.shape(ids)),
            stop_token_ids=stop_token_ids,
            model=self,
        )

    def _prefill(self, inputs):
        """The cache of prompts, with room for further tokens.

        A dict of `blocks`, the keys and values of each, and `mask`, of shape
        `(batch_size, p + m)`, false at padding.
        """
        prompt, offset = inputs["token_ids"], inputs["offset"]
        mask = ops.cast(inputs["padding_mask"], "bool")
        pinned = self.backbone.family.pinned(
            {"token_ids": prompt, "padding_mask": mask}
        )
        hidden = self._embed(prompt)
        caches = []
        *blocks, last = self.backbone.conditional_blocks
        for block in blocks:
            hidden, cache = block.prefill(hidden, mask, pinned)
            caches.append(cache)
        # Of what the last block does to a prompt, nothing is read.
        caches.append(last.keys_and_values(hidden))
        room = inputs["room"].shape[1]

        def place(cache):
            widths = [[0, 0], [0, 0], [0, room], [0, 0], [0, 0]]
            empty = ops.zeros_like(ops.pad(cache, widths))
            return ops.slice_update(empty, (0, 0, offset, 0, 0), cache)

        padded = ops.pad(mask, [[0, 0], [0, room]])
        placed = ops.slice_update(ops.zeros_like(padded), (0, offset), mask)
        columns = ops.arange(padded.shape[1], dtype="int32")
        return {
            "blocks": tuple(map(place, caches)),
            "mask": ops.logical_or(placed, columns >= prompt.shape[1] + offset),
        }

    def _step(self, hidden, cache, index, position):
        """One token of each row through all blocks."""
        caches = []
        for block, own in zip(
            self.backbone.conditional_blocks, cache["blocks"]
        ):
            hidden, own = block.step(
                hidden, own, index, position, cache["mask"]
            )
            caches.append(own)
        return hidden, {"blocks": tuple(caches), "mask": cache["mask"]}


def make_has_ended(inputs, start, stop_token_ids):
    """Tells the rows of which nothing more is read.

    What such a row goes on with must not depend on how long the others
    take: a beam search would choose between its beams by that.

    Args:
        inputs, stop_token_ids: see `CodaCausalLM.generate_step`.
        start: where all prompts end.

    Returns:
        A function of token ids of shape `(batch_size * num_beams, p + m)`
        and of the position that is to be written. It returns a bool tensor
        of shape `(batch_size * num_beams, 1)`.
    """
    lengths = ops.sum(inputs["padding_mask"], axis=1)
    batch_size = lengths.shape[0]
    end = inputs["padding_mask"].shape[1] + inputs["room"].shape[1]
    # The shortest prompt can take all of the room.
    ends = end - (lengths - ops.min(lengths))
    columns = ops.arange(end, dtype="int32")

    def has_ended(token_ids, index):
        ended = index >= ends
        if stop_token_ids is not None:
            written = ops.logical_and(columns >= start, columns < index)
            # `ops.isin` cannot be traced on TensorFlow.
            stop = ops.array(stop_token_ids, "int32")
            stops = ops.any(token_ids[..., None] == stop, axis=-1)
            stopped = ops.any(ops.logical_and(stops, written), axis=1)
            beams = ops.reshape(stopped, (batch_size, -1))
            ended = ops.logical_or(ended, ops.all(beams, axis=1))
        num_beams = token_ids.shape[0] // batch_size
        return ops.repeat(ended, num_beams)[:, None]

    return has_ended


def left_padded(inputs):
    """Prompts that end at the same position, and the room behind them.

    Args:
        inputs: dict of `token_ids` and `padding_mask` as KerasHub makes them,
            of shape `(batch_size, n)`: padded on their right.

    Returns:
        A dict of arrays: `token_ids` and `padding_mask` of shape `(batch_size,
        p)`; `room`, zeros of shape `(batch_size, m)`, enough for the shortest
        prompt to grow to n; and `offset`, how much more than enough it is.
    """
    token_ids, mask = _to_arrays(inputs)
    batch_size, n = token_ids.shape
    lengths = mask.sum(axis=1)
    width = _rounded(lengths.max())
    columns = np.arange(width) - (width - lengths[:, None])
    is_real = columns >= 0
    moved = np.take_along_axis(token_ids, np.maximum(columns, 0), axis=1)
    num_steps = n - lengths.min()
    room = _rounded(num_steps)
    return {
        "token_ids": np.where(is_real, moved, 0).astype("int32"),
        "padding_mask": is_real.astype("int32"),
        "room": np.zeros((batch_size, room), "int32"),
        "offset": np.array(room - num_steps, "int32"),
    }


def right_padded(inputs, prompts, token_ids, stop_token_ids):
    """What `generate` returns: rows that begin at the first position.

    Args:
        inputs, prompts: what `left_padded` takes and returns.
        token_ids: tensor of shape `(batch_size, p + m)`.
        stop_token_ids: optional tuple of the ids that end a row.

    Returns:
        A dict of tensors `token_ids` and `padding_mask`, `(batch_size, n)`.
    """
    _, mask = _to_arrays(inputs)
    end = prompts["token_ids"].shape[1] + prompts["offset"]
    start = end - mask.sum(axis=1, keepdims=True)
    columns = start + np.arange(mask.shape[1])
    token_ids = np.take_along_axis(
        ops.convert_to_numpy(token_ids), columns, axis=1
    )
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


def _rounded(length):
    step = STEP if compiles_generation() else 1
    return max(-(-int(length) // step), 1) * step
