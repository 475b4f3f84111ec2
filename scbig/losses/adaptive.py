"""Adaptive gene weights: errors count most at the genes that a condition moves, and more so as training goes on.

The idea is that of the adaptive loss of PertAdapt (2025): most genes do not respond, and a plain mean over genes is a mean
over their noise. Weights are fixed before training from effects of the training data; only their share is scheduled.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = [
    "differential_weights",
    "mean_effect_loss",
    "mixed_weights",
    "noise_floor",
    "scheduled_share",
    "weighted_effect_loss",
]


def noise_floor(effects: Float[np.ndarray, "conditions genes"]) -> Float[np.ndarray, "conditions 1"]:
    """A standard deviation of the noise where effects come without errors: most genes of a condition do not respond.

    It is the median of the absolute effects in units of that of a standard normal distribution.
    """
    return np.median(np.abs(effects), axis=1, keepdims=True) / 0.6745


def differential_weights(
    effects: Float[np.ndarray, "conditions genes"],
    error: Float[np.ndarray, "conditions #genes"],
    floor: float | int = 2.0,
    power: float | int = 1.0,
) -> Float[np.ndarray, "conditions genes"]:
    """Weights of genes by condition, from how far an effect stands out of its noise.

    Args:
        effects: of the training conditions.
        error: standard error of each effect, or one for all genes of a condition.
        floor: standard errors below which an effect counts as none.
        power: of what is left above the floor.

    Returns:
        Float32 of mean 1 in every condition; 1 throughout where no gene stands out.
    """
    above = np.maximum(np.abs(effects).astype(np.float64) - floor * error, 0.0)
    # A power of zero weighs all that stand out alike.
    weight = np.where(above > 0, above ** float(power), 0.0)
    mean = weight.mean(axis=1, keepdims=True)
    return np.where(mean > 0, weight / np.where(mean > 0, mean, 1.0), 1.0).astype(np.float32)


def scheduled_share(
    progress: Float[Array, ""] | float, begin: float | int = 0.1, end: float | int = 0.6
) -> Float[Array, ""]:
    """Share of the differential weights: 0 until ``begin`` of the training, then linear, 1 from ``end`` on."""
    return jnp.clip((jnp.asarray(progress) - begin) / (end - begin), 0.0, 1.0)


def mixed_weights(
    weights: Float[Array, "*batch genes"], share: Float[Array, ""] | float
) -> Float[Array, "*batch genes"]:
    """From uniform weights (share 0) to the given ones (share 1); means stay 1."""
    return 1.0 + share * (weights - 1.0)


def weighted_effect_loss(
    predicted: Float[Array, "conditions genes"],
    truth: Float[Array, "conditions genes"],
    weights: Float[Array, "conditions genes"],
) -> Float[Array, " conditions"]:
    """Mean weighted squared error over the genes of each condition."""
    return jnp.mean(weights * jnp.square(predicted - truth), axis=-1)


def mean_effect_loss(
    cells: Float[Array, "cells genes"], mean: Float[Array, " genes"], weights: Float[Array, " genes"]
) -> Float[Array, ""]:
    """Weighted squared distance of a population's mean from where it should be, without bias by the number of cells.

    The mean of few cells is off by chance even where the population is right; its sampling variance is taken off, or the
    loss would ask for a narrower population. A sample may come out below zero.

    Args:
        cells: of one condition; two at least.
        mean: of the real ones.
        weights: of genes, of mean 1.
    """
    n = cells.shape[0]
    centre = jnp.mean(cells, axis=0)
    variance = jnp.sum(jnp.square(cells - centre[None]), axis=0) / (n * max(n - 1, 1))
    return jnp.mean(weights * (jnp.square(centre - mean) - variance))
