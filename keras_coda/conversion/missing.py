"""What the installed KerasHub lacks of what can be converted."""

import keras
import keras_hub

from keras_coda import models

# The first KerasHub with what the oldest that this package takes lacks.
FIRST_VERSIONS = {
    "BertTextEmbedder": "0.30",
    "Gemma3TextEmbedder": "0.30",
    "Qwen3TextEmbedder": "0.30",
    "T5Seq2SeqLM": "0.32",
    "XLMRobertaTextEmbedder": "0.30",
}


def leave_out(name):
    """Lets whoever asks for the converted class know what it needs.

    `keras_coda.models` says it, and so does a file of the class when it is
    loaded.

    Args:
        name: the name of a class that `keras_hub.models` lacks.
    """
    coda_name = f"Coda{name}"
    version = FIRST_VERSIONS.get(name)
    known = f" {version} or newer" if version else ", newer than this one"
    message = (
        f"`keras_coda.models.{coda_name}` needs a KerasHub{known}, which has "
        f"`keras_hub.models.{name}`. Run `{_upgrade(version)}`. "
        f"Received: KerasHub {keras_hub.__version__}"
    )
    models.missing_classes[coda_name] = message

    class Missing:
        @classmethod
        def from_config(cls, config):
            raise ImportError(message)

        def get_config(self):
            raise NotImplementedError(message)

    register = keras.saving.register_keras_serializable("keras_coda", coda_name)
    register(Missing)


def leave_out_missing_tasks():
    """Calls `leave_out` for each task that the installed KerasHub lacks."""
    for name in FIRST_VERSIONS:
        if not hasattr(keras_hub.models, name):
            leave_out(name)


def missing_note():
    """What the installed KerasHub lacks, as a sentence; empty if nothing."""
    names = [name.removeprefix("Coda") for name in models.missing_classes]
    if not names:
        return ""
    versions = [FIRST_VERSIONS.get(name) for name in names]
    listed = ", ".join(
        f"{name} (since {version})" if version else name
        for name, version in zip(names, versions)
    )
    newest = max(filter(None, versions), key=_as_numbers, default=None)
    return (
        f"KerasHub {keras_hub.__version__} lacks {listed}. Run "
        f"`{_upgrade(newest)}`."
    )


def _upgrade(version):
    package = f'"keras-hub>={version}"' if version else "keras-hub"
    return f"pip install --upgrade {package}"


def _as_numbers(version):
    return [int(number) for number in version.split(".")]
