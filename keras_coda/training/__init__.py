"""Training recipes beyond plain fine-tuning."""

from keras_coda.training.align import align

__all__ = ["align"]
