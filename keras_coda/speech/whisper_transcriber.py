import keras
import keras_hub
import numpy as np
from keras import ops

from keras_coda.validation import validate_positive_integer


class WhisperTranscriber(keras.Model):
    """Writes down what is said, with a Whisper that KerasHub has no task for.

    Greedy, batched, and with a cache: the encoder runs once, and each further
    token costs one step of the decoder. `predict` compiles the whole of it on
    TensorFlow and JAX. A converted backbone routes in its encoder; its decoder
    is dense.

    Args:
        backbone: a `keras_hub.models.WhisperBackbone`, or what
            `keras_coda.coda_wrap` made of one.
        tokenizer: the `keras_hub.models.WhisperTokenizer` of its vocabulary.
        audio_converter: optional `keras_hub.layers.WhisperAudioConverter`.
            Its `max_audio_length`, in seconds, is what is computed of every
            input, silence included. Defaults to one of 30 seconds, which is
            what Whisper was trained on.
        language: optional str, such as `"en"`, of a multilingual model.
        max_length: int. The most tokens of a transcript. Defaults to `128`.
        **kwargs: see `keras.Model`.

    Call arguments:
        inputs: float tensor of shape `(batch_size, num_frames, num_mels)`, what
            the audio converter makes. With fewer frames than the model's 3,000,
            fewer are computed.

    Returns:
        int32 tensor of shape `(batch_size, max_length)`, token ids, and the
        tokenizer's `eos_token_id` from the end of each transcript on.

    Raises:
        TypeError: if `backbone` or `tokenizer` is of another kind.
        ValueError: if `max_length` is more than the decoder has positions for,
            or `language` is unknown, missing, or given to an English model.

    Example:

    >>> tokenizer = keras_hub.models.WhisperTokenizer(
    ...     {"h": 0, "i": 1, "hi": 2},
    ...     ["h i"],
    ...     {
    ...         "<|endoftext|>": 3,
    ...         "<|startoftranscript|>": 4,
    ...         "<|translate|>": 5,
    ...         "<|transcribe|>": 6,
    ...         "<|notimestamps|>": 7,
    ...     },
    ... )
    >>> backbone = keras_hub.models.WhisperBackbone(
    ...     vocabulary_size=8,
    ...     num_layers=1,
    ...     num_heads=2,
    ...     hidden_dim=8,
    ...     intermediate_dim=16,
    ...     max_encoder_sequence_length=100,
    ... )
    >>> transcriber = keras_coda.speech.WhisperTranscriber(
    ...     keras_coda.coda_wrap(backbone, reduction_factor=2),
    ...     tokenizer,
    ...     keras_hub.layers.WhisperAudioConverter(max_audio_length=1),
    ...     max_length=4,
    ... )
    >>> texts = transcriber.transcribe(np.zeros((2, 16000)))
    >>> len(texts)
    2

    With KerasHub's presets, `backbone` is
    `WhisperBackbone.from_preset("whisper_tiny_en")` and `tokenizer`
    `WhisperTokenizer.from_preset("whisper_tiny_en")`.

    Reference:
        [Radford et al., 2022](https://arxiv.org/abs/2212.04356).
    """

    def __init__(
        self,
        backbone,
        tokenizer,
        audio_converter=None,
        language=None,
        max_length=128,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value, cls in (
            ("backbone", backbone, keras_hub.models.WhisperBackbone),
            ("tokenizer", tokenizer, keras_hub.models.WhisperTokenizer),
        ):
            if not isinstance(value, cls):
                raise TypeError(
                    f"`{name}` must be a `keras_hub.models.{cls.__name__}`. "
                    f"Received: {name}={value!r}"
                )
        self.backbone, self.tokenizer = backbone, tokenizer
        self.audio_converter = (
            audio_converter or keras_hub.layers.WhisperAudioConverter()
        )
        self.prompt = _prompt(tokenizer, language)
        self.max_length = validate_positive_integer("max_length", max_length)
        longest = backbone.max_decoder_sequence_length - len(self.prompt)
        if max_length > longest:
            raise ValueError(
                f"`max_length` must be at most {longest}: the decoder has "
                f"{backbone.max_decoder_sequence_length} positions, and "
                f"{len(self.prompt)} are the prompt's. Received: {max_length=}"
            )
        self.encoder = keras.Model(
            backbone.input["encoder_features"],
            backbone.output["encoder_sequence_output"],
        )
        # Beyond the end: languages, tasks and times.
        ids = np.arange(backbone.vocabulary_size)
        self.is_written = ids <= tokenizer.eos_token_id
        self.built = True
        self._compiled_at = None

    def make_predict_function(self, force=False):
        """What `predict` runs; compiled anew if the backbone routes anew."""
        settings = [
            getattr(self.backbone, name, None)
            for name in ("reduction_factor", "attention")
        ]
        is_old = settings != self._compiled_at
        self._compiled_at = settings
        return super().make_predict_function(force=force or is_old)

    def transcribe(self, audio, batch_size=8):
        """Writes down sounds.

        Args:
            audio: float array of shape `(batch_size, num_samples)`, or a list
                of arrays of any lengths, 16,000 samples a second, between -1
                and 1. What is longer than the audio converter's
                `max_audio_length` is cut off.
            batch_size: int. Defaults to `8`.

        Returns:
            A list of texts.

        Raises:
            ValueError: if a sound is no such array. Nothing is written then.
        """
        sounds = [_validated(ops.convert_to_numpy(sound)) for sound in audio]
        if not sounds:
            return []
        features = np.stack(
            [
                ops.convert_to_numpy(self.audio_converter(sound))
                for sound in sounds
            ]
        )
        token_ids = self.predict(features, batch_size=batch_size, verbose=0)
        return self.detokenize(token_ids)

    def teacher_forced(self, features, batch_size=8):
        """Inputs of the backbone: features, and its own transcripts of them.

        What `keras_coda.training.calibrate` and `align` take, without texts.

        Args:
            features: array of shape `(batch_size, num_frames, num_mels)`.
            batch_size: int. Defaults to `8`.

        Returns:
            A dict of arrays. The padding mask is 0 behind each transcript, and
            at the end token, behind which nothing is written.
        """
        written = self.predict(features, batch_size=batch_size, verbose=0)
        prompt = np.tile(np.array([self.prompt], "int32"), (len(written), 1))
        token_ids = np.concatenate([prompt, written], axis=1)
        mask = token_ids != self.tokenizer.eos_token_id
        length = mask.sum(axis=-1).max()
        return {
            "encoder_features": np.asarray(features),
            "decoder_token_ids": token_ids[:, :length],
            "decoder_padding_mask": mask[:, :length].astype("int32"),
        }

    def logits(self, inputs):
        """What the decoder makes of inputs, zero at padding.

        `observed` of `keras_coda.training.calibrate`: how far the encoder's
        states matter is how far they change this.

        Args:
            inputs: inputs of the backbone, such as `teacher_forced` makes.

        Returns:
            Tensor of shape `(batch_size, length, vocabulary_size)`.
        """
        outputs = self.backbone(inputs, training=False)
        states = outputs["decoder_sequence_output"]
        mask = ops.cast(inputs["decoder_padding_mask"], states.dtype)
        logits = self.backbone.token_embedding(states, reverse=True)
        return logits * ops.expand_dims(mask, -1)

    def detokenize(self, token_ids):
        """Texts of what `predict` returns, a list."""
        end = self.tokenizer.eos_token_id
        return [
            self.tokenizer.detokenize([id for id in row if id != end])
            for row in np.asarray(token_ids).tolist()
        ]

    def call(self, inputs):
        encoded = self.encoder(inputs, training=False)
        batch_size = ops.shape(encoded)[0]
        end = self.tokenizer.eos_token_id
        prompt = ops.tile(np.array([self.prompt], "int32"), (batch_size, 1))
        start = len(self.prompt)
        length = start + self.max_length
        empty = ops.full((batch_size, self.max_length), end, dtype="int32")
        next_ids, cache, cross_caches = self._decode(
            prompt,
            0,
            encoded,
            self._empty_cache(encoded, length),
            self._empty_cache(encoded, ops.shape(encoded)[1]),
        )
        token_ids = ops.slice_update(
            ops.concatenate([prompt, empty], axis=1),
            (0, start),
            ops.expand_dims(next_ids, 1),
        )

        def goes_on(index, token_ids, last_ids, cache):
            return ops.any(last_ids != end)

        def write_one(index, token_ids, last_ids, cache):
            next_ids, cache, _ = self._decode(
                ops.expand_dims(last_ids, 1),
                index,
                encoded,
                cache,
                cross_caches,
            )
            next_ids = ops.where(last_ids == end, end, next_ids)
            token_ids = ops.slice_update(
                token_ids, (0, index + 1), ops.expand_dims(next_ids, 1)
            )
            return index + 1, token_ids, next_ids, cache

        _, token_ids, _, _ = ops.while_loop(
            goes_on,
            write_one,
            (start, token_ids, next_ids, cache),
            maximum_iterations=self.max_length - 1,
        )
        return token_ids[:, start:]

    def _empty_cache(self, encoded, length):
        """Keys and values of all decoder layers, none computed yet."""
        num_heads = self.backbone.num_heads
        head_dim = self.backbone.hidden_dim // num_heads
        num_layers = len(self.backbone.decoder_transformer_layers)
        return ops.zeros(
            (ops.shape(encoded)[0], num_layers, 2, length, num_heads, head_dim),
            dtype=encoded.dtype,
        )

    def _decode(self, token_ids, index, encoded, cache, cross_caches):
        """The decoder on tokens from position `index` on.

        Returns:
            A tuple of the most likely next token of each row, the cache of the
            decoder's tokens, and that of the encoder's outputs, which is
            computed at position 0 and used from then on.
        """
        is_first = isinstance(index, int) and index == 0
        x = self.backbone.decoder_embeddings(token_ids, start_index=index)
        caches, others = [], []
        for number, layer in enumerate(
            self.backbone.decoder_transformer_layers
        ):
            x, own, other = layer(
                x,
                encoder_sequence=encoded,
                self_attention_cache=cache[:, number],
                self_attention_cache_update_index=index,
                cross_attention_cache=cross_caches[:, number],
                cross_attention_cache_update_index=0 if is_first else None,
            )
            caches.append(own)
            others.append(other)
        x = self.backbone.decoder_layer_norm(x[:, -1])
        logits = self.backbone.token_embedding(x, reverse=True)
        logits = ops.where(self.is_written, logits, -np.inf)
        next_ids = ops.cast(ops.argmax(logits, axis=-1), "int32")
        cache = ops.stack(caches, axis=1)
        return next_ids, cache, ops.stack(others, axis=1) if is_first else None


def _validated(sound):
    """A sound as float32, if it is one."""
    received = f"an array of shape {sound.shape} and dtype {sound.dtype}"
    if sound.ndim == 1 and sound.dtype.kind == "f":
        loudest = np.abs(sound).max(initial=0)
        # Resampling goes a little beyond 1. NaN is in no range.
        if loudest < 2:
            return sound.astype("float32")
        received += f" with samples up to {loudest:g}"
    raise ValueError(
        "`audio` must be a list of sounds, each an array of shape "
        "`(num_samples,)` of floats between -1 and 1, 16,000 a second. Put "
        "one sound into a list, take the mean of its channels, and divide "
        f"int16 samples by 32,768. Received: {received}"
    )


def _prompt(tokenizer, language):
    """The tokens that a transcript begins with, as ids."""
    languages = tokenizer.language_tokens
    if languages is None:
        if language is not None:
            raise ValueError(
                "An English model takes no `language`. Received: "
                f"language={language!r}"
            )
        return [tokenizer.bos_token_id, tokenizer.no_timestamps_token_id]
    token = f"<|{language}|>"
    if token not in languages:
        known = ", ".join(sorted(name.strip("<|>") for name in languages))
        raise ValueError(
            f"`language` must be one of {known}. Received: {language=}"
        )
    return [
        tokenizer.bos_token_id,
        languages[token],
        tokenizer.transcribe_token_id,
        tokenizer.no_timestamps_token_id,
    ]
