"""Callbacks for `fit` that change the reduction factor while it trains."""

from keras_coda.callbacks.elastic_reduction import ElasticReduction
from keras_coda.callbacks.reduction_schedule import ReductionSchedule

__all__ = ["ElasticReduction", "ReductionSchedule"]
