"""Losses: pure functions of arrays. The flow-matching loss itself is a mean square, in the training step."""

from scbig.losses.correlation import cluster_correlation, correlation, module_means, shrunk_correlation
from scbig.losses.energy import energy_distance
from scbig.losses.pathway import pathway_transport
from scbig.losses.reconstruction import reconstruction

__all__ = [
    "cluster_correlation",
    "correlation",
    "energy_distance",
    "module_means",
    "pathway_transport",
    "reconstruction",
    "shrunk_correlation",
]
