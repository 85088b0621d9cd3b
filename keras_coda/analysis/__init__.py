"""What a converted model does: which tokens it routes."""

from keras_coda.analysis.highlight_routing import highlight_routing
from keras_coda.analysis.plot_routing import plot_routing
from keras_coda.analysis.routing import routing

__all__ = ["highlight_routing", "plot_routing", "routing"]
