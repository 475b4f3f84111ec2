"""Energy distance between populations, differentiable and of fixed shape, for watching training."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["energy_distance"]


def energy_distance(
    x: Float[Array, "n dims"],
    y: Float[Array, "m dims"],
    x_weights: Float[Array, " n"] | None = None,
    y_weights: Float[Array, " m"] | None = None,
) -> Float[Array, ""]:
    """``2E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖`` with the Euclidean norm, unbiased (no self pairs); Székely and Rizzo 2013.

    Args:
        x: one population.
        y: the other.
        x_weights: 1 for a cell, 0 for padding.
        y_weights: the same for ``y``.
    """
    wx = jnp.ones(x.shape[0]) if x_weights is None else x_weights
    wy = jnp.ones(y.shape[0]) if y_weights is None else y_weights
    across = _mean_distance(x, y, wx[:, None] * wy[None, :])
    within_x = _mean_distance(x, x, wx[:, None] * wx[None, :] * (1.0 - jnp.eye(x.shape[0])))
    within_y = _mean_distance(y, y, wy[:, None] * wy[None, :] * (1.0 - jnp.eye(y.shape[0])))
    return 2.0 * across - within_x - within_y


def _mean_distance(x, y, weights):
    squared = jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :] - 2.0 * x @ y.T
    positive = squared > 1e-12
    # The inner where keeps the square root's gradient finite at zero distance.
    distance = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return jnp.sum(weights * distance) / jnp.sum(weights)
