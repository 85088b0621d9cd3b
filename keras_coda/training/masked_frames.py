import keras
import numpy as np

from keras_coda.conversion.trained_weights import backbone_of
from keras_coda.training.random_projection_quantizer import (
    RandomProjectionQuantizer,
)


class MaskedFramesObjective:
    """The codes of masked frames of speech, BEST-RQ, for `pretrain`.

    Attributes:
        num_stacked: int. Frames of which the encoder makes one token.
        num_frames: int. Frames that utterances are padded to.
        mask_rate: float. Expected share of the tokens that are masked.
        span: int. Tokens that are masked together.
    """

    # The paper's: 400 ms, of frames of 10 ms, from one frame in a hundred on.
    frames_in_span = 40
    default_mask_rate = 1 - 0.99**frames_in_span
    noise = 0.1

    def __init__(
        self, coda, task_cls, tokenizer, sequence_length, mask_rate, rng
    ):
        inputs, outputs = encoder_tensors(backbone_of(coda))
        encoder = keras.Model(inputs, outputs)
        self.frames_name = find_frames(inputs)
        self.mask_name = next(
            (name for name in inputs if name != self.frames_name), None
        )
        self.num_features = inputs[self.frames_name].shape[-1]
        self.num_stacked, self.num_frames = _count_frames(
            encoder, inputs[self.frames_name].shape[1] or sequence_length
        )
        self.mask_rate = mask_rate or self.default_mask_rate
        self.span = max(1, round(self.frames_in_span / self.num_stacked))
        self.rng = rng
        self.quantizer = RandomProjectionQuantizer(
            self.num_stacked * self.num_features, seed=rng
        )
        codes = keras.layers.Dense(
            len(self.quantizer.codebook), dtype="float32", name="codes"
        )(outputs)
        self.model = keras.Model(inputs, codes)
        self.loss = keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        )
        self.metrics = [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        ]

    @staticmethod
    def default_sequence_length(backbone, x):
        return max(map(len, x), default=1)

    def make_batch(self, utterances):
        """Makes `(x, y, sample_weight)` from a list of utterances.

        Args:
            utterances: list of arrays of shape `(frames, features)`, of about
                mean 0 and deviation 1.
        """
        batch_size = len(utterances)
        num_tokens = self.num_frames // self.num_stacked
        shape = (batch_size, self.num_frames, self.num_features)
        frames, targets = np.zeros(shape, "float32"), np.zeros(shape, "float32")
        is_real = np.zeros(shape[:2], "int32")
        is_masked = np.zeros((batch_size, num_tokens), bool)
        for row, utterance in enumerate(utterances):
            utterance = self._validate(utterance)[: self.num_frames]
            length = len(utterance)
            frames[row, :length] = utterance
            mean, deviation = utterance.mean(axis=0), utterance.std(axis=0)
            targets[row, :length] = (utterance - mean) / (deviation + 1e-3)
            is_real[row, :length] = 1
            # Only tokens all of whose frames are real.
            length //= self.num_stacked
            is_masked[row, :length] = self._draw_mask(length)
        stacked = targets.reshape((batch_size, num_tokens, -1))
        codes = np.zeros((batch_size, num_tokens), "int32")
        codes[is_masked] = self.quantizer(stacked[is_masked])
        is_hidden = is_masked.repeat(self.num_stacked, axis=1)
        frames[is_hidden] = self.rng.normal(
            0.0, self.noise, (is_hidden.sum(), self.num_features)
        )
        x = {self.frames_name: frames}
        if self.mask_name:
            x[self.mask_name] = is_real
        return x, codes, is_masked.astype("float32")

    def _draw_mask(self, length):
        """Spans that start at random, and may overlap; at least one."""
        if not length:
            return np.zeros(0, bool)
        start_rate = 1 - (1 - self.mask_rate) ** (1 / self.span)
        # Also such as began before the first token.
        is_start = self.rng.random(length + self.span - 1) < start_rate
        if not is_start.any():
            is_start[self.rng.integers(len(is_start))] = True
        return np.convolve(is_start, np.ones(self.span), "valid")[:length] > 0

    def _validate(self, utterance):
        utterance = np.asarray(utterance)
        if utterance.ndim != 2 or utterance.shape[1] != self.num_features:
            raise ValueError(
                "`x` must be a list of utterances, arrays of shape (frames, "
                f"{self.num_features}). Received: one of shape "
                f"{utterance.shape}"
            )
        return utterance.astype("float32")


def encoder_tensors(backbone):
    """The inputs of a backbone's encoder, by name, and its outputs."""
    inputs = {
        x.name: x
        for x in keras.tree.flatten(backbone.input)
        if not x.name.startswith("decoder_")
    }
    outputs = backbone.output
    if isinstance(outputs, dict):
        outputs = outputs.get("encoder_sequence_output")
    return inputs, outputs


def find_frames(inputs):
    """The name of the input that is frames of features, or `None`.

    Beside it there may only be a mask of the frames.
    """
    frames = [
        name
        for name, x in inputs.items()
        if len(x.shape) == 3 and keras.backend.is_float_dtype(x.dtype)
    ]
    masks = [name for name, x in inputs.items() if len(x.shape) == 2]
    is_alone = len(frames) == 1 and len(masks) == len(inputs) - 1 <= 1
    return frames[0] if is_alone else None


def _count_frames(encoder, length):
    """The frames in a token, and a number of frames that makes whole tokens."""

    def count_tokens(num_frames):
        inputs = {
            name: keras.KerasTensor((1, num_frames, *x.shape[2:]), x.dtype)
            for name, x in encoder.input.items()
        }
        return encoder.compute_output_spec(inputs).shape[1]

    num_stacked = max(1, round(length / count_tokens(length)))
    num_frames = -(-length // num_stacked) * num_stacked
    num_tokens = count_tokens(num_frames)
    if num_tokens * num_stacked != num_frames:
        raise ValueError(
            "The encoder of `coda` must make one token of every so many "
            f"frames. Received: one that makes {num_tokens} of {num_frames}"
        )
    return num_stacked, num_frames
