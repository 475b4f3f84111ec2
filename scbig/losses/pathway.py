"""Pathway optimal transport: populations should agree in pathway activity (paper Eq. 10)."""

from __future__ import annotations

from jaxtyping import Array, Float

from scbig import ot

__all__ = ["pathway_transport"]


def pathway_transport(
    predicted: Float[Array, "cells genes"],
    activity: Float[Array, "others pathways"],
    pathways: Float[Array, "pathways genes"],
    epsilon: float = 0.05,
    iterations: int = 100,
) -> Float[Array, ""]:
    """Debiased Sinkhorn divergence between pathway activities ``Y = X Wᵀ``, divided by the number of pathways.

    In the log domain with ε relative to the median cost: the plain-domain kernel ``exp(−C/0.1)`` underflows to a loss and
    a gradient of exactly zero on real cells.

    Args:
        predicted: decoded cells of one condition.
        activity: pathway activity of real cells of the same condition, computed once before training.
        pathways: row-normalised membership.
        epsilon: regularisation as a share of the median cost.
        iterations: Sinkhorn iterations; the gradient does not pass through them.
    """
    divergence = ot.divergence(predicted @ pathways.T, activity, epsilon, iterations)
    return divergence / pathways.shape[0]
