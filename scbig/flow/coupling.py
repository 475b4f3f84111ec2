"""Which control each perturbed cell is paired with, within one condition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from scbig import assignment, ot
from scbig.rng import generator

__all__ = ["COUPLINGS", "couple", "precompute"]

COUPLINGS = ("independent", "sinkhorn", "exact", "precomputed")
_ITERATIONS = 50
_PADDED = 128  # cells to whose multiples populations are filled up


def couple(
    key: jax.Array,
    z0: Float[Array, "conditions cells latent"],
    z1: Float[Array, "conditions cells latent"],
    kind: str,
    epsilon: float = 0.05,
) -> tuple[Int[Array, "conditions cells"], Float[Array, ""]]:
    """For each control the place of its partner among the perturbed cells of the same condition.

    Args:
        key: draws partners from the transport plan.
        z0: controls.
        z1: perturbed cells.
        kind: ``independent`` (and ``precomputed``, which was paired before) keeps the order; ``sinkhorn`` draws from the
            entropic plan of squared distances; ``exact`` solves the assignment on the host.
        epsilon: regularisation as a share of the mean cost.

    Returns:
        The partners, and the mean row perplexity of the plan: the number of partners that a control effectively
        chooses among (1 for a permutation, the number of cells for the independent coupling).
    """
    n_conditions, n_cells = z0.shape[:2]
    if kind in ("independent", "precomputed"):
        order = jnp.broadcast_to(jnp.arange(n_cells, dtype=jnp.int32), (n_conditions, n_cells))
        return order, jnp.asarray(float(n_cells))
    cost = jax.vmap(ot.squared_distances)(z0, z1)
    if kind == "exact":
        shape = jax.ShapeDtypeStruct((n_conditions, n_cells), jnp.int32)
        return jax.pure_callback(_assign, shape, cost), jnp.asarray(1.0)
    if kind == "sinkhorn":
        scale = epsilon * jnp.mean(cost, axis=(1, 2))
        plan = jax.vmap(ot.plan)(cost, ot.sinkhorn_batch(cost, scale, _ITERATIONS), scale)
        partners = jax.vmap(ot.match)(jax.random.split(key, n_conditions), plan)
        return partners, jnp.mean(jax.vmap(ot.perplexity)(plan))
    raise ValueError(f"no coupling called {kind!r}: {', '.join(COUPLINGS)}")


def _assign(cost):
    return np.stack([assignment.one_to_one(np.asarray(each)) for each in cost]).astype(np.int32)


def precompute(
    z0: Float[np.ndarray, "controls latent"],
    z1: Float[np.ndarray, "cells latent"],
    seed: int,
    epsilon: float = 0.05,
    draws: int = 16,
    most: int = 2048,
) -> tuple[Int[np.ndarray, "cells draws"], float]:
    """For each perturbed cell ``draws`` controls from one entropic plan over all cells of the condition.

    Args:
        z0: the controls of the condition's context.
        z1: all training cells of the condition.
        seed: draws partners, and the controls that are used where there are more than ``most``.
        epsilon: regularisation as a share of the mean cost.
        draws: partners kept per cell.
        most: controls that enter the plan at the most.

    Returns:
        Indices into ``z0``, and the mean perplexity of a perturbed cell's choice.
    """
    rng = generator(seed, "precomputed coupling")
    pool = np.arange(len(z0)) if len(z0) <= most else np.sort(rng.choice(len(z0), most, replace=False))
    plan, perplexity = _plan(*_padded(z1), *_padded(z0[pool]), epsilon)
    rows = np.cumsum(np.asarray(plan, np.float64)[: len(z1), : len(pool)], axis=1)
    rows /= rows[:, -1:]
    drawn = np.stack([np.searchsorted(row, rng.random(draws), side="right") for row in rows])
    return pool[np.minimum(drawn, len(pool) - 1)].astype(np.int32), float(perplexity)


def _padded(z):
    """Cells filled up with cells of no weight, so that conditions of nearly any size share one program, and weights."""
    size = -(-len(z) // _PADDED) * _PADDED
    weight = np.zeros(size, np.float32)
    weight[: len(z)] = 1.0 / len(z)
    return np.concatenate([z, np.broadcast_to(z[:1], (size - len(z), z.shape[1]))]), weight


@jax.jit
def _plan(z1, a, z0, b, epsilon):
    cost = ot.squared_distances(z1, z0)
    scale = epsilon * (a @ cost @ b)
    plan = ot.plan(cost, ot.sinkhorn(cost, scale, a, b, iterations=200), scale, a, b)
    return plan, ot.perplexity(plan)
