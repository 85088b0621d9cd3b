"""Speech to text with a dense or a converted encoder."""

# First: it says what to install where KerasHub is missing.
from keras_coda import conversion  # noqa: F401
from keras_coda.speech.whisper_transcriber import WhisperTranscriber

__all__ = ["WhisperTranscriber"]
