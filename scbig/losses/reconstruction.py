"""Reconstruction of expression (paper Eq. 5)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["reconstruction"]


def reconstruction(
    predicted: Float[Array, "cells genes"],
    observed: Float[Array, "cells genes"],
    gene_weights: Float[Array, " genes"] | None = None,
) -> Float[Array, ""]:
    """Mean squared error over cells and genes of centred log-expression, optionally weighted per gene (mean weight 1)."""
    squared = jnp.square(predicted - observed)
    if gene_weights is not None:
        squared = squared * (gene_weights / jnp.mean(gene_weights))[None]
    return jnp.mean(squared)
