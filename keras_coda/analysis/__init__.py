"""What a converted model does: which tokens it routes, what it computes."""

from keras_coda.analysis.flops import flops
from keras_coda.analysis.highlight_routing import highlight_routing
from keras_coda.analysis.plot_budget import plot_budget
from keras_coda.analysis.plot_routing import plot_routing
from keras_coda.analysis.routing import routing

__all__ = [
    "flops",
    "highlight_routing",
    "plot_budget",
    "plot_routing",
    "routing",
]
