"""A Perturb-seq screen on a mechanistic footing, with matching priors and the truth it was drawn from.

Genes belong to balanced modules, each with regulator genes; modules act on each other along a signed acyclic
wiring. A perturbation moves its own gene and, through its module, everything downstream. Pairs combine by a
rule on the relation of the two genes' modules (``KIND_OF_RELATION``), so how a pair interacts can be learned
from other pairs. Cells differ by cell cycle, module noise, batch, depth, and by whether and how strongly the
perturbation works in them; counts are negative binomial.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbig.data.conditions import CONTROL, join
from scbig.data.simulator.cells import Latent, activity, draw_counts, noiseless_means
from scbig.data.simulator.config import SimConfig
from scbig.data.simulator.priors import SimulatedPriors, make_priors
from scbig.data.simulator.world import KIND_OF_RELATION, Double, World, build
from scbig.data.text import portable
from scbig.errors import InputError
from scbig.files import atomic

__all__ = ["KIND_OF_RELATION", "SimConfig", "Simulation", "in_blocks", "save", "save_priors", "simulate"]

# Each purpose has its own stream, so that asking for more cells does not change the planted world.
_WORLD, _PRIORS, _DESIGN, _CELLS, _TRUTH = range(5)


@dataclass(frozen=True)
class Simulation:
    """A simulated screen and what it was drawn from; every AnnData says ``uns["simulated_cells"] = True``.

    Attributes:
        config: the settings.
        adata: the screen. ``X`` counts (int32 CSR); ``obs`` condition, context, batch, cell_cycle, n_umis.
        priors: embeddings, network and pathways of the same genes.
        truth: one row per condition and context. ``layers["mean"]`` is E[log1p(counts / total × target)],
            total being the cell's UMIs over all genes and target their median over all cells of ``adata``
            (``uns["scbig"]["target_sum"]``), as a user of the full gene panel computes it. ``X`` is that mean
            minus the control's in the same context: the noiseless effect. ``obs`` has kind (control, single,
            or the kind of interaction), relation and n_perturbed; ``obsm["module_activity"]`` the change of
            module activities in a cell where every perturbation works with its mean strength.
        modules: gene, module, is_regulator, role (+1 activator, −1 repressor), is_perturbed.
    """

    config: SimConfig
    adata: ad.AnnData
    priors: SimulatedPriors
    truth: ad.AnnData
    modules: pd.DataFrame


def simulate(config: SimConfig) -> Simulation:
    """Simulates a screen; the same configuration gives the same bits.

    Raises:
        InputError: the settings contradict each other; named.
    """
    world = build(config, _stream(config, _WORLD))
    names, conditions = _conditions(world)
    condition, context = _design(config, len(names), _stream(config, _DESIGN))
    counts, latent = draw_counts(config, world, conditions, condition, context, _stream(config, _CELLS))
    contexts = np.array([f"line{i + 1}" for i in range(config.n_contexts)])
    obs = _cells_table(config, names, condition, context, latent, counts)
    target = float(np.median(obs["n_umis"]))
    adata = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=world.genes), uns=_marks(config))
    return Simulation(
        config=config,
        adata=adata,
        priors=make_priors(config, world, _stream(config, _PRIORS)),
        truth=_truth(config, world, names, conditions, contexts, target),
        modules=_module_table(world),
    )


def save(simulation: Simulation, out_dir: str | os.PathLike) -> Path:
    """Writes the screen, its priors and its truth into a folder that appears whole or not at all.

    The folder holds ``screen.h5ad``, ``truth.h5ad``, ``modules.csv`` and ``priors/`` with ``semantic.npz``,
    ``noisy.npz`` (arrays genes, vectors), ``ppi.tsv.gz`` and ``pathways.gmt``.

    Raises:
        InputError: ``out_dir`` exists and is not a folder written by this function.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not (out_dir / "truth.h5ad").is_file() and not _is_empty(out_dir):
        raise InputError(f"{out_dir} exists and holds something else: choose another folder for the screen")
    with atomic(out_dir) as folder, portable():
        folder.mkdir(parents=True)
        simulation.adata.write_h5ad(folder / "screen.h5ad", compression="gzip")
        simulation.truth.write_h5ad(folder / "truth.h5ad")
        simulation.modules.to_csv(folder / "modules.csv", index=False)
        save_priors(simulation.priors, folder / "priors")
    return out_dir


def save_priors(priors: SimulatedPriors, folder: Path) -> None:
    """Writes embeddings, network and pathways as files into a new folder."""
    folder.mkdir()
    for name, (genes, vectors) in priors.embeddings.items():
        np.savez(folder / f"{name}.npz", genes=genes, vectors=vectors)
    # A fixed time stamp keeps equal networks equal as files.
    with gzip.GzipFile(folder / "ppi.tsv.gz", "wb", mtime=0) as handle:
        handle.write(priors.ppi.to_csv(sep="\t", index=False).encode())
    lines = ["\t".join((name, "simulated", *genes)) for name, genes in priors.pathways.items()]
    (folder / "pathways.gmt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def in_blocks(config: SimConfig, rows: int) -> tuple[SimulatedPriors, Iterator[ad.AnnData]]:
    """Priors, and the cells block by block, for screens larger than memory; no noiseless truth is made.

    The world and the priors are those of ``simulate``; the cells are other draws from it.

    Args:
        config: the settings.
        rows: cells in a block.

    Raises:
        InputError: the settings contradict each other; named.
    """
    world = build(config, _stream(config, _WORLD))
    return make_priors(config, world, _stream(config, _PRIORS)), _blocks(config, world, rows)


def _blocks(config: SimConfig, world: World, rows: int) -> Iterator[ad.AnnData]:
    names, conditions = _conditions(world)
    condition, context = _design(config, len(names), _stream(config, _DESIGN))
    rng = _stream(config, _CELLS)
    for start in range(0, config.n_cells, rows):
        here = slice(start, start + rows)
        counts, latent = draw_counts(config, world, conditions, condition[here], context[here], rng)
        yield ad.AnnData(
            counts,
            obs=_cells_table(config, names, condition[here], context[here], latent, counts, start),
            var=pd.DataFrame(index=world.genes),
            uns=_marks(config),
        )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _stream(config: SimConfig, purpose: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, purpose])


def _marks(config: SimConfig) -> dict:
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(config).items()}
    return {"simulated_cells": True, "scbig": {"simulated": True}, "simulation": settings}


def _conditions(world: World) -> tuple[list[str], list[tuple[tuple[int, ...], Double | None]]]:
    """Names of all conditions, control first, with the perturbed genes and the kind behind each."""
    symbols = world.genes[world.perturbed]
    names = [CONTROL, *symbols.tolist()]
    members: list[tuple[tuple[int, ...], Double | None]] = [((), None)]
    members.extend(((i,), None) for i in range(symbols.size))
    for pair in world.doubles:
        names.append(join([str(symbols[pair.first]), str(symbols[pair.second])]))
        members.append(((pair.first, pair.second), pair))
    return names, members


def _design(config: SimConfig, n_conditions: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Condition and context of every cell: unequal group sizes as in a pooled screen, in random order."""
    n_control = round(config.control_share * config.n_cells)
    share = np.exp(rng.normal(0, 0.3, n_conditions - 1))
    ideal = np.cumsum(share / share.sum()) * (config.n_cells - n_control)
    size = np.diff(np.round(ideal).astype(np.int64), prepend=0)
    condition = np.repeat(np.arange(n_conditions), [n_control, *size])
    # Dealt out in turn before shuffling: no condition is missing from a context.
    context = np.arange(config.n_cells) % config.n_contexts
    order = rng.permutation(config.n_cells)
    return condition[order], context[order]


def _cells_table(
    config: SimConfig,
    names: list[str],
    condition: np.ndarray,
    context: np.ndarray,
    latent: Latent,
    counts: sp.csr_matrix,
    first: int = 0,
) -> pd.DataFrame:
    umis = np.asarray(counts.sum(1)).ravel()
    contexts = [f"line{i + 1}" for i in range(config.n_contexts)]
    batches = [f"batch{i + 1}" for i in range(config.n_batches)]
    phase = (latent.phase >= 0.5).astype(int) + (latent.phase >= 0.75)
    return pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, names),
            "context": pd.Categorical.from_codes(context, contexts),
            "batch": pd.Categorical.from_codes(latent.batch, batches),
            "cell_cycle": pd.Categorical.from_codes(phase, ["G1", "S", "G2M"]),
            "n_umis": umis.astype(np.int64),
        },
        index=[f"cell{i + 1:06d}" for i in range(first, first + len(condition))],
    )


def _truth(
    config: SimConfig, world: World, names: list[str], conditions: list, contexts: np.ndarray, target: float
) -> ad.AnnData:
    means = noiseless_means(config, world, conditions, target, _stream(config, _TRUTH))
    effects = means - means[:, :1]
    rows, activities = [], []
    for c, context in enumerate(contexts):
        for name, (members, double) in zip(names, conditions, strict=True):
            kind = double.kind if double else ("single" if members else CONTROL)
            rows.append((name, context, kind, double.relation if double else "", len(members)))
            full = np.ones((1, len(members)))
            activities.append(activity(world, members, double, full, c, config.synergy, config.buffering)[0])
    obs = pd.DataFrame(rows, columns=["condition", "context", "kind", "relation", "n_perturbed"])
    obs.index = obs["condition"] if config.n_contexts == 1 else obs["condition"] + "|" + obs["context"]
    obs.index.name = None
    uns = _marks(config)
    uns["scbig"] = {
        "schema": 1,
        "kind": "effects",
        "simulated": True,
        "normalization": "median",
        "target_sum": target,
        "size_factor": "total",
    }
    return ad.AnnData(
        effects.reshape(-1, world.genes.size),
        obs=obs,
        var=pd.DataFrame(index=world.genes),
        layers={"mean": means.reshape(-1, world.genes.size)},
        obsm={"module_activity": np.array(activities, dtype=np.float32)},
        uns=uns,
    )


def _module_table(world: World) -> pd.DataFrame:
    perturbed = np.zeros(world.genes.size, dtype=bool)
    perturbed[world.perturbed] = True
    return pd.DataFrame(
        {
            "gene": world.genes,
            "module": world.module,
            "is_regulator": world.regulator != 0,
            "role": world.regulator,
            "is_perturbed": perturbed,
        }
    )
