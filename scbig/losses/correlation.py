"""Cluster-correlation alignment: modules of predicted cells should vary together as in real ones (paper Eq. 8)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["cluster_correlation", "correlation", "module_means", "shrunk_correlation"]

_VARIANCE_FLOOR = 1e-6


def module_means(
    x: Float[Array, "cells genes"], averaging: Float[Array, "modules genes"]
) -> Float[Array, "cells modules"]:
    """Mean expression of each module in each cell; ``averaging`` has rows that sum to one."""
    return x @ averaging.T


def correlation(x: Float[Array, "cells modules"]) -> Float[Array, "modules modules"]:
    """Pearson correlation over cells; the floor on the variance keeps the gradient finite where a module is flat."""
    centred = x - jnp.mean(x, axis=0, keepdims=True)
    covariance = centred.T @ centred / x.shape[0]
    scale = jnp.sqrt(jnp.diagonal(covariance) + _VARIANCE_FLOOR)
    return covariance / (scale[:, None] * scale[None, :])


def shrunk_correlation(x: Float[np.ndarray, "cells modules"]) -> Float[np.ndarray, "modules modules"]:
    """The target: Ledoit-Wolf shrunk correlation of standardised module means, for conditions of few cells."""
    from sklearn.covariance import ledoit_wolf

    scale = x.std(axis=0)
    standard = (x - x.mean(axis=0)) / np.sqrt(scale**2 + _VARIANCE_FLOOR)
    covariance, _ = ledoit_wolf(standard.astype(np.float64))
    scale = np.sqrt(np.maximum(np.diagonal(covariance), _VARIANCE_FLOOR))
    return (covariance / np.outer(scale, scale)).astype(np.float32)


def cluster_correlation(
    predicted: Float[Array, "cells genes"],
    target: Float[Array, "modules modules"],
    averaging: Float[Array, "modules genes"],
) -> Float[Array, ""]:
    """``‖R(x̂) − R*‖²_F / K²`` over the cells of one condition.

    Args:
        predicted: decoded cells.
        target: cached correlation of the condition's real cells.
        averaging: module-mean weights, rows sum to one.
    """
    return jnp.mean(jnp.square(correlation(module_means(predicted, averaging)) - target))
