"""Prior knowledge about simulated genes: embeddings, a network and pathways, with chosen noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scbig.data.simulator.config import SimConfig
from scbig.data.simulator.world import World

__all__ = ["SimulatedPriors", "make_priors"]


@dataclass(frozen=True)
class SimulatedPriors:
    """What a user of real genes would bring to the screen.

    Attributes:
        embeddings: by name, the genes and their vectors (float32, ``[genes, dim]``). ``semantic`` covers all
            genes, ``noisy`` lacks some.
        ppi: edges with columns gene_a, gene_b, combined_score (scores below 700 are mostly chance).
        pathways: gene sets by name.
    """

    embeddings: dict[str, tuple[np.ndarray, np.ndarray]]
    ppi: pd.DataFrame
    pathways: dict[str, tuple[str, ...]]


def make_priors(config: SimConfig, world: World, rng: np.random.Generator) -> SimulatedPriors:
    """Draws priors that know the planted modules as well as the configuration's noise settings let them."""
    meaning = _meaning(config, world, rng)
    n = world.genes.size
    semantic = _noisy(meaning, config.semantic_noise, rng)
    noisy = _noisy(meaning, config.noisy_noise, rng)
    kept = np.sort(rng.permutation(n)[: n - round(config.noisy_missing * n)])
    return SimulatedPriors(
        embeddings={"semantic": (world.genes, semantic), "noisy": (world.genes[kept], noisy[kept])},
        ppi=_network(config, world, rng),
        pathways=_pathways(config, world, rng),
    )


def _meaning(config: SimConfig, world: World, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors: the gene's module, the modules it acts on, and for regulators which way they act."""
    dim = config.embedding_dim
    centre = rng.normal(size=(config.n_modules, dim)) / np.sqrt(dim)
    role = rng.normal(size=dim) / np.sqrt(dim)
    related = centre + 0.3 * (np.sign(np.abs(world.wiring)) @ centre)
    vectors = related[world.module] + 0.5 * world.regulator[:, None] * role
    secondary = world.impulse.copy()
    secondary[np.arange(world.perturbed.size), world.module[world.perturbed]] = 0
    vectors[world.perturbed] += secondary @ centre
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _noisy(vectors: np.ndarray, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Adds noise whose length is ``noise`` times the signal's (unit) length."""
    return (vectors + noise * rng.normal(size=vectors.shape) / np.sqrt(vectors.shape[1])).astype(np.float32)


def _network(config: SimConfig, world: World, rng: np.random.Generator) -> pd.DataFrame:
    """Edges at the wanted density, a share of them within modules; regulators are hubs, some genes absent."""
    n = world.genes.size
    absent = rng.random(n) < config.ppi_missing
    first, second = np.triu_indices(n, 1)
    present = ~absent[first] & ~absent[second]
    first, second = first[present], second[present]
    within = world.module[first] == world.module[second]
    appeal = 1.0 + 2.0 * (world.regulator != 0)
    weight = appeal[first] * appeal[second]
    n_edges = round(config.ppi_density * first.size)
    n_within = min(round(config.ppi_within * n_edges), int(within.sum()))
    picked = [
        _pick(np.flatnonzero(within), weight, n_within, rng),
        _pick(np.flatnonzero(~within), weight, n_edges - n_within, rng),
    ]
    strong = np.concatenate(picked)
    # A fifth more edges at scores that a threshold of 700 removes, without regard to modules.
    weak = rng.choice(np.setdiff1d(np.arange(first.size), strong), n_edges // 5, replace=False)
    edge = np.concatenate([strong, weak])
    score = np.concatenate([rng.integers(701, 1000, strong.size), rng.integers(400, 700, weak.size)])
    order = np.argsort(edge)
    edge = edge[order]
    return pd.DataFrame(
        {
            "gene_a": world.genes[first[edge]],
            "gene_b": world.genes[second[edge]],
            "combined_score": score[order],
        }
    )


def _pick(pool: np.ndarray, weight: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Weighted sampling without replacement: the n smallest exponential arrival times."""
    arrival = rng.exponential(size=pool.size) / weight[pool]
    return pool[np.argpartition(arrival, min(n, pool.size - 1))[:n]]


def _pathways(config: SimConfig, world: World, rng: np.random.Generator) -> dict[str, tuple[str, ...]]:
    """Two overlapping parts of each module with some chance members, and a few sets of chance alone."""
    sets: dict[str, tuple[str, ...]] = {}
    sizes = []
    for k in range(config.n_modules):
        members = rng.permutation(np.flatnonzero(world.module == k))
        part = -(-2 * members.size // 3)
        outside = np.flatnonzero(world.module != k)
        for name, genes in (("A", members[:part]), ("B", members[-part:])):
            chance = rng.choice(outside, round(config.pathway_noise * genes.size), replace=False)
            both = np.sort(np.concatenate([genes, chance]))
            sets[f"MODULE_{k:02d}_{name}"] = tuple(world.genes[both].tolist())
            sizes.append(both.size)
    for i in range(max(1, config.n_modules // 4)):
        chance = np.sort(rng.choice(world.genes.size, sizes[i], replace=False))
        sets[f"CHANCE_{i:02d}"] = tuple(world.genes[chance].tolist())
    return sets
