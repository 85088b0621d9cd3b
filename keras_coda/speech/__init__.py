"""Speech to text with a dense or a converted encoder."""

from keras_coda.speech.whisper_transcriber import WhisperTranscriber

__all__ = ["WhisperTranscriber"]
