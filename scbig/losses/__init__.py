"""Losses: pure functions of arrays. The flow-matching loss itself is a mean square, in the training step."""

from scbig.losses.adaptive import (
    differential_weights,
    mean_effect_loss,
    mixed_weights,
    noise_floor,
    scheduled_share,
    weighted_effect_loss,
)
from scbig.losses.correlation import cluster_correlation, correlation, module_means, shrunk_correlation
from scbig.losses.energy import energy_distance
from scbig.losses.negative_binomial import drawn, expected_log, log_likelihood, thinned, tilt
from scbig.losses.pathway import pathway_transport
from scbig.losses.reconstruction import reconstruction

__all__ = [
    "cluster_correlation",
    "correlation",
    "differential_weights",
    "drawn",
    "energy_distance",
    "expected_log",
    "log_likelihood",
    "mean_effect_loss",
    "mixed_weights",
    "module_means",
    "noise_floor",
    "pathway_transport",
    "reconstruction",
    "scheduled_share",
    "shrunk_correlation",
    "thinned",
    "tilt",
    "weighted_effect_loss",
]
