"""Artefacts that are served without Keras and without this library."""

from keras_coda.exporting.export import export

__all__ = ["export"]
