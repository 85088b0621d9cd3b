"""Training recipes beyond plain fine-tuning."""

from keras_coda.training.accelerate import accelerate
from keras_coda.training.align import align
from keras_coda.training.calibrate import calibrate
from keras_coda.training.calibration import Calibration
from keras_coda.training.pretrain import pretrain
from keras_coda.training.random_projection_quantizer import (
    RandomProjectionQuantizer,
)
from keras_coda.training.span_corruption import corrupt_spans

__all__ = [
    "Calibration",
    "RandomProjectionQuantizer",
    "accelerate",
    "align",
    "calibrate",
    "corrupt_spans",
    "pretrain",
]
