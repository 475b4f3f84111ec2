"""Cells of a planted world: module activities, counts, and the noiseless means they scatter around."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int
from scipy.special import ndtri

from scbig.data.simulator.config import SimConfig
from scbig.data.simulator.counts import depth_nodes, negative_binomial, tabulate
from scbig.data.simulator.world import Double, World

__all__ = ["Latent", "activity", "draw_counts", "draw_latent", "noiseless_means"]

_BLOCK = 1024


@dataclass(frozen=True)
class Latent:
    """What differs between cells of one condition; n cells, K modules.

    Attributes:
        phase: place in the cell cycle in [0, 1), ``[n]``.
        batch: batch number, ``[n]``.
        noise: standard normal deviates of the modules, ``[n, K]``.
        response: uniform deviates that decide escape and strength of the (up to two)
            perturbations, ``[n, 2, 2]``.
    """

    phase: Float[np.ndarray, " n"]
    batch: Int[np.ndarray, " n"]
    noise: Float[np.ndarray, "n K"]
    response: Float[np.ndarray, "n 2 2"]


def draw_latent(config: SimConfig, n: int, rng: np.random.Generator, even: bool = False) -> Latent:
    """Draws ``n`` cells' latent state; ``even`` stratifies each coordinate (a Latin hypercube)."""
    width = config.n_modules + 6
    uniform = rng.random((n, width))
    if even:
        uniform = (rng.permuted(np.tile(np.arange(n)[:, None], (1, width)), axis=0) + uniform) / n
    return Latent(
        phase=uniform[:, 0],
        batch=np.minimum((uniform[:, 1] * config.n_batches).astype(np.int64), config.n_batches - 1),
        noise=ndtri(np.clip(uniform[:, 6:], 1e-12, 1 - 1e-12)),
        response=uniform[:, 2:6].reshape(n, 2, 2),
    )


def activity(
    world: World,
    members: tuple[int, ...],
    double: Double | None,
    rho: Float[np.ndarray, "n members"],
    context: int,
    synergy: float,
    buffering: float,
) -> Float[np.ndarray, "n K"]:
    """Change of module activities when perturbations respond with strength ``rho``.

    With a = rho × the response to the impulse of each gene: additive a₁ + a₂; buffering (1 − buffering)(a₁ +
    a₂); masking the epistatic gene's a alone; synergistic a₁ + a₂ plus an impulse on every module both act
    on, as large as ``synergy`` times the sum of their direct actions there, spreading downstream.
    Interactions need both perturbations to work in the cell: where one escaped, the other acts alone.

    Args:
        world: the planted world.
        members: indices of the perturbed genes (none for control).
        double: the pair's kind, if there are two.
        rho: strength of each perturbation in each cell, 0 where it escaped.
        context: which context.
        synergy: size of the cooperative impulse.
        buffering: share of the joint effect that is lost.
    """
    impulses = world.impulse[list(members)] * world.competence[context]
    spread = world.response[context]
    total = rho @ (impulses @ spread)
    if double is None or double.kind == "additive":
        return total
    both = (rho > 0).all(1)[:, None]
    if double.kind == "buffering":
        return total * (1 - buffering * both)
    if double.kind == "masking":
        kept = members.index(double.epistatic)
        alone = rho[:, [kept]] * (impulses[[kept]] @ spread)
        return np.where(both, alone, total)
    return total + both * (rho.min(1, keepdims=True) * (_cooperation(world, impulses, members, synergy) @ spread))


def _cooperation(world: World, impulses: np.ndarray, members: tuple[int, ...], synergy: float) -> np.ndarray:
    """The extra impulse of a synergistic pair on the modules both of its modules act on, ``[1, K]``."""
    home = world.module[world.perturbed[list(members)]]
    direct = np.stack([impulses[i, k] * world.wiring[k] for i, k in enumerate(home)])
    shared = (direct != 0).all(0)
    size = synergy * np.abs(direct).sum(0)
    # The sign is that of the larger action, so that opposite actions still cooperate rather than cancel.
    sign = np.sign(direct[np.abs(direct).argmax(0), np.arange(direct.shape[1])])
    return (shared * size * sign)[None, :]


def responses(
    config: SimConfig, world: World, members: tuple[int, ...], latent: Latent
) -> Float[np.ndarray, "n members"]:
    """Strength of each perturbation in each cell: 0 where it escapes, else log-normal with mean one."""
    columns = []
    for slot, gene in enumerate(members):
        works = latent.response[:, slot, 0] >= world.escape[gene]
        z = ndtri(np.clip(latent.response[:, slot, 1], 1e-12, 1 - 1e-12))
        columns.append(works * np.exp(config.response_sigma * z - config.response_sigma**2 / 2))
    return np.stack(columns, 1) if columns else np.zeros((latent.phase.size, 0))


def _resting(config: SimConfig, world: World, latent: Latent) -> np.ndarray:
    """Module activities of unperturbed cells: noise and the cell cycle, ``[n, K]``."""
    state = config.module_noise * latent.noise
    for module, peak in zip(world.cycle, (0.625, 0.875), strict=True):
        state[:, module] += config.cycle_amplitude * np.cos(2 * np.pi * (latent.phase - peak))
    return state


def _log_shares(
    world: World,
    state: np.ndarray,
    members: tuple[int, ...],
    rho: np.ndarray,
    batch: np.ndarray,
    context: int,
) -> np.ndarray:
    """Log of each gene's share of the library, rows of shares summing to one, ``[n, G]``, float32."""
    rate = (state @ world.loading).astype(np.float32)
    rate += world.baseline[context].astype(np.float32)
    rate += world.batch.astype(np.float32)[batch]
    for slot, gene in enumerate(members):
        rate[:, world.perturbed[gene]] += (rho[:, slot] * world.own[gene]).astype(np.float32)
    rate -= rate.max(1, keepdims=True)
    rate -= np.log(np.exp(rate).sum(1, keepdims=True))
    return rate


def _shares(
    config: SimConfig,
    world: World,
    members: tuple[int, ...],
    double: Double | None,
    latent: Latent,
    context: int,
) -> np.ndarray:
    rho = responses(config, world, members, latent)
    state = _resting(config, world, latent)
    state += activity(world, members, double, rho, context, config.synergy, config.buffering)
    return _log_shares(world, state, members, rho, latent.batch, context)


def draw_counts(
    config: SimConfig,
    world: World,
    conditions: list[tuple[tuple[int, ...], Double | None]],
    condition: Int[np.ndarray, " cells"],
    context: Int[np.ndarray, " cells"],
    rng: np.random.Generator,
) -> tuple[sp.csr_matrix, Latent]:
    """Counts of all cells in their order, drawn group by group so that memory stays bounded.

    Args:
        config: the configuration.
        world: the planted world.
        conditions: for each condition its perturbed genes and, for pairs, the kind.
        condition: condition number of each cell.
        context: context number of each cell.
        rng: the source of randomness.

    Returns:
        Counts as int32 CSR of shape ``[cells, G]`` and the latent state of the cells.
    """
    latent = draw_latent(config, condition.size, rng)
    depth = config.depth * np.exp(rng.normal(0, config.depth_sigma, condition.size) - config.depth_sigma**2 / 2)
    group = condition * config.n_contexts + context
    order = np.argsort(group, kind="stable")
    parts = []
    for rows in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        members, double = conditions[condition[rows[0]]]
        for start in range(0, rows.size, _BLOCK):
            cells = rows[start : start + _BLOCK]
            piece = Latent(latent.phase[cells], latent.batch[cells], latent.noise[cells], latent.response[cells])
            share = np.exp(_shares(config, world, members, double, piece, int(context[cells[0]])))
            mean = depth[cells, None].astype(np.float32) * share
            parts.append(sp.csr_matrix(negative_binomial(rng, mean, world.dispersion).astype(np.int32)))
    counts = sp.vstack(parts, format="csr")
    back = np.empty_like(order)
    back[order] = np.arange(order.size)
    return counts[back], latent


def noiseless_means(
    config: SimConfig,
    world: World,
    conditions: list[tuple[tuple[int, ...], Double | None]],
    target: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "contexts conditions G"]:
    """E[log1p(counts / total × target)] of every condition in every context.

    The expectation over counts and depth comes from a table per gene (``counts.tabulate``), that over cells
    (cycle, batch, module noise, escape, strength) from ``config.truth_cells`` stratified draws which all
    conditions share, so that their differences are far more precise than the means themselves.
    """
    latent = draw_latent(config, config.truth_cells, rng, even=True)
    nodes, weights = depth_nodes(config.depth, config.depth_sigma)
    means = np.empty((config.n_contexts, len(conditions), world.genes.size), dtype=np.float32)
    for c in range(config.n_contexts):
        control = _shares(config, world, (), None, latent, c)
        profile = np.exp(control).mean(0).astype(np.float64)
        table = tabulate(world.dispersion, nodes, weights, target, profile)
        for i, (members, double) in enumerate(conditions):
            means[c, i] = table(_shares(config, world, members, double, latent, c)).mean(0, dtype=np.float64)
    return means
