"""The flow: path, coupling and integration, as pure functions without networks."""

from scbig.flow.coupling import COUPLINGS, couple, precompute
from scbig.flow.ode import SOLVERS, integrate, integrate_adaptive
from scbig.flow.path import endpoint, interpolate, sample_time

__all__ = [
    "COUPLINGS",
    "SOLVERS",
    "couple",
    "endpoint",
    "integrate",
    "integrate_adaptive",
    "interpolate",
    "precompute",
    "sample_time",
]
