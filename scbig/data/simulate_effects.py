"""Cells drawn around a given table of effects: real effects, simulated cells, and always marked so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from scbig.data.conditions import CONTROL
from scbig.data.simulator.counts import ExpectedLog, depth_nodes, negative_binomial, tabulate
from scbig.errors import InputError, some

__all__ = ["noiseless_effects", "simulate_from_effects"]

_BLOCK = 1024
_LARGEST_LOG_FOLD = 10.0
_LARGEST_PANEL = 0.7
_HIGHEST_CPM = 1e4


@dataclass(frozen=True)
class _Noise:
    """What differs between cells of one condition; G genes, R programmes."""

    dispersion: np.ndarray  # [G]
    programme: np.ndarray  # [R, G]
    batch: np.ndarray  # [batches, G]

    @property
    def variance(self) -> np.ndarray:
        """Variance of each gene's log share by its programmes."""
        return (self.programme**2).sum(0)


@dataclass(frozen=True)
class _Plan:
    """What cells are drawn from; C conditions with control first.

    A cell of condition c has log share base + z·fold_c + shift_c + programmes + batch, where z is normal
    around 1, or has escaped and stays at base + programmes + batch.
    """

    noise: _Noise
    base: np.ndarray  # [G]
    fold: np.ndarray  # [C, G]
    shift: np.ndarray  # [C, G]


def simulate_from_effects(
    effects: ad.AnnData,
    n_cells: int,
    seed: int = 0,
    *,
    scale: str = "pseudobulk",
    control_share: float = 0.1,
    n_batches: int = 2,
    depth: float = 10_000.0,
    depth_sigma: float = 0.35,
    median_cpm: float = 40.0,
    dispersion: float = 0.2,
    n_programmes: int = 8,
    programme_sigma: float = 0.25,
    batch_sigma: float = 0.1,
    escape: float = 0.1,
    response_sigma: float = 0.2,
) -> ad.AnnData:
    """Draws counts of cells whose conditions differ from control as the table says.

    The genes are a panel out of a transcriptome: ``obs["n_umis"]`` is the depth over the whole transcriptome
    and is the size factor to normalise by. A table of effects holds no baseline, so one is *assumed*:
    log-normal around ``median_cpm``, ranked with a correlation of 0.5 like the genes' largest effects, raised
    where the most negative effect needs room to fall and lowered where the most positive one would take the
    gene beyond a hundredth of the transcriptome. Cells of one condition differ by shared programmes
    (log-normal, hence correlated genes), batch, depth, escape from the perturbation and strength of the
    response; the mean over them is kept at the table (a fall stops where escaped cells alone hold more than
    it leaves).

    Args:
        effects: one row per condition, ``obs["condition"]`` canonical, ``X`` the differences to control,
            genes named.
        n_cells: cells in all, control included.
        seed: the only source of randomness; the result does not depend on the number of processors.
        scale: ``pseudobulk``: differences of log1p(counts per million of pooled cells), or ``mean_log``:
            differences of mean log1p(counts / depth × median depth) over cells.
        control_share: share of cells that are controls.
        n_batches: batches.
        depth: mean UMIs of a cell over the whole transcriptome.
        depth_sigma: its log-normal spread.
        median_cpm: median baseline of the genes, in counts per million.
        dispersion: median of the genes' α (variance = mean + α mean²).
        n_programmes: programmes that vary between cells of one condition.
        programme_sigma: typical log deviation of a gene by its programmes.
        batch_sigma: log deviation of a gene by batch.
        escape: share of cells in which a perturbation fails.
        response_sigma: deviation of a responding cell's log fold change, as a share of it.

    Returns:
        Counts (int32 CSR in ``X``) with ``obs`` condition, context, batch, n_umis; ``uns["simulated_cells"]``
        is True, ``uns["effects_source"]`` says whose effects they are, ``uns["truth"]`` holds the noiseless
        effects (``noiseless_effects`` gives them as AnnData).

    Raises:
        InputError: the table has no conditions, repeated conditions or genes, values that are not finite, or
            effects so large that the genes would outgrow the transcriptome.
    """
    if scale not in ("pseudobulk", "mean_log"):
        raise InputError(f"scale={scale!r} is neither 'pseudobulk' nor 'mean_log'")
    if not 0 <= escape < 1:
        raise InputError(f"escape={escape} is not a share below 1")
    names, delta = _check_table(effects, n_cells, control_share)
    rng = np.random.default_rng([seed, 0])
    condition = _design(n_cells, names.size, control_share, rng)
    batch = rng.integers(0, n_batches, n_cells)
    depths = depth * np.exp(rng.normal(0, depth_sigma, n_cells) - depth_sigma**2 / 2)
    target = float(np.median(np.rint(depths)))
    noise = _noise(delta.shape[1], dispersion, n_programmes, programme_sigma, n_batches, batch_sigma, rng)
    table = tabulate(noise.dispersion, *depth_nodes(depth, depth_sigma), target)
    table = table.smoothed(np.sqrt(noise.variance + noise.batch.var(0)))
    plan = _plan(noise, table, delta, median_cpm, scale, escape, response_sigma, rng)
    _check_room(plan, names, response_sigma)
    counts = _draw(plan, condition, batch, depths, escape, response_sigma, seed)
    umis = np.maximum(np.rint(depths).astype(np.int64), np.asarray(counts.sum(1)).ravel())
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical.from_codes(condition, names),
            "context": pd.Categorical.from_codes(np.zeros(n_cells, np.int8), ["all"]),
            "batch": pd.Categorical.from_codes(batch, [f"batch{i + 1}" for i in range(n_batches)]),
            "n_umis": umis,
        },
        index=[f"cell{i + 1:07d}" for i in range(n_cells)],
    )
    uns = {
        "simulated_cells": True,
        "effects_source": str(effects.uns.get("source", "not stated by the table of effects")),
        "scbig": {"simulated": True},
        "simulation": {"seed": seed, "scale": scale, "size_factor": "n_umis", "target_sum": target},
        "truth": {
            "conditions": names[1:],
            "genes": np.asarray(effects.var_names, dtype=str),
            "effect": _expected_effects(plan, table, escape, response_sigma),
        },
    }
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=effects.var_names.copy()), uns=uns)


def noiseless_effects(adata: ad.AnnData) -> ad.AnnData:
    """The truth behind ``simulate_from_effects``, as an effects table.

    It holds differences of E[log1p(counts / n_umis × median n_umis)] to control.

    They differ from the table the cells were drawn around where that is on the pseudobulk scale: a gene seen
    in few cells moves little in mean log-expression.

    Raises:
        InputError: the cells were not drawn by ``simulate_from_effects``.
    """
    if "truth" not in adata.uns or "effect" not in adata.uns["truth"]:
        raise InputError('uns["truth"] is absent: noiseless effects exist for cells from simulate_from_effects only')
    truth = adata.uns["truth"]
    names = np.asarray(truth["conditions"], dtype=str)
    uns = {
        "simulated_cells": True,
        "effects_source": adata.uns["effects_source"],
        "scbig": {
            "schema": 1,
            "kind": "effects",
            "simulated": True,
            "normalization": "median",
            "target_sum": float(adata.uns["simulation"]["target_sum"]),
            "size_factor": "n_umis",
        },
    }
    obs = pd.DataFrame({"condition": names, "context": "all"}, index=names)
    var = pd.DataFrame(index=np.asarray(truth["genes"], dtype=str))
    return ad.AnnData(np.asarray(truth["effect"], dtype=np.float32), obs=obs, var=var, uns=uns)


def _check_table(effects: ad.AnnData, n_cells: int, control_share: float) -> tuple[np.ndarray, np.ndarray]:
    """Names with control first, and differences in float64 with a row of zeros for control."""
    if "condition" not in effects.obs:
        raise InputError(f'table of effects: obs["condition"] is absent; it has {some(effects.obs.columns)}')
    conditions = pd.Index(effects.obs["condition"].astype(str))
    for what, index in (("gene", effects.var_names), ("condition", conditions)):
        if index.has_duplicates:
            raise InputError(f"table of effects: repeated {what} {some(index[index.duplicated()].unique())}")
    dense = effects.X.toarray() if sp.issparse(effects.X) else np.asarray(effects.X)
    names = effects.obs["condition"].astype(str).to_numpy()
    wrong = ~np.isfinite(dense).all(1)
    if wrong.any():
        raise InputError(f"table of effects: values that are not finite in {some(names[wrong])}")
    perturbed = names != CONTROL
    if not perturbed.any():
        raise InputError("table of effects: no condition other than control")
    names, dense = names[perturbed], dense[perturbed].astype(np.float64)
    if not 0 < control_share < 1:
        raise InputError(f"control_share={control_share} is not between 0 and 1")
    if n_cells * (1 - control_share) < 2 * names.size or n_cells * control_share < 2:
        raise InputError(f"n_cells={n_cells} is fewer than 2 for each of {names.size} conditions and control")
    return np.concatenate([[CONTROL], names]), np.vstack([np.zeros(dense.shape[1]), dense])


def _design(n_cells: int, n_conditions: int, control_share: float, rng: np.random.Generator) -> np.ndarray:
    """Condition of every cell in random order; unequal groups, none empty."""
    n_control = max(2, round(control_share * n_cells))
    share = np.exp(rng.normal(0, 0.3, n_conditions - 1))
    spare = n_cells - n_control - 2 * (n_conditions - 1)
    size = 2 + np.diff(np.round(np.cumsum(share / share.sum()) * spare).astype(np.int64), prepend=0)
    return rng.permutation(np.repeat(np.arange(n_conditions), [n_control, *size]))


def _noise(
    n_genes: int,
    dispersion: float,
    n_programmes: int,
    programme_sigma: float,
    n_batches: int,
    batch_sigma: float,
    rng: np.random.Generator,
) -> _Noise:
    """Draws dispersions, programmes (each gene in about a quarter of them) and batch shifts."""
    alpha = np.clip(np.exp(rng.normal(np.log(dispersion), 0.4, n_genes)), 0.02, 3.0)
    loading = rng.normal(size=(n_programmes, n_genes)) * (rng.random((n_programmes, n_genes)) < 0.25)
    loading *= programme_sigma / np.sqrt(max(1.0, 0.25 * n_programmes))
    batch = rng.normal(0, batch_sigma, (n_batches, n_genes)) * (n_batches > 1)
    # Expected shares must not drift with noise: every log-normal factor has mean one.
    return _Noise(alpha, loading, batch - np.log(np.exp(batch).mean(0)))


def _plan(
    noise: _Noise,
    table: ExpectedLog,
    delta: np.ndarray,
    median_cpm: float,
    scale: str,
    escape: float,
    tau: float,
    rng: np.random.Generator,
) -> _Plan:
    sigma = np.sqrt(noise.variance)
    base = _baseline(delta / (1 - escape), median_cpm, sigma, table, scale, rng)
    if scale == "pseudobulk":
        return _Plan(noise, base, *_fold_of_pseudobulk(base, sigma, delta, escape, tau))
    return _Plan(noise, base, *_fold_of_mean_log(base, table, delta, escape, tau))


def _baseline(
    delta: np.ndarray,
    median_cpm: float,
    sigma: np.ndarray,
    table: ExpectedLog,
    scale: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Log shares of unperturbed cells, ``[genes]``."""
    largest = np.abs(delta).max(0)
    rank = (np.argsort(np.argsort(largest)) + 0.5) / largest.size
    score = 0.5 * 2 * np.sqrt(3) * (rank - 0.5) + np.sqrt(0.75) * rng.normal(size=rank.size)
    cpm = median_cpm * np.exp(1.2 * score)
    low = 1.05 * np.maximum(0.0, -delta.min(0))
    top = -np.maximum(0.0, delta.max(0))
    if scale == "pseudobulk":
        level = np.maximum(low, np.minimum(np.log1p(cpm), top + np.log1p(_HIGHEST_CPM)))
        # A twentieth of a count per million: a gene at its floor is off, not absent.
        return np.log(np.maximum(np.expm1(level), 0.05) / 1e6) - sigma**2 / 2
    free = table((np.log(cpm / 1e6) - sigma**2 / 2)[None, :])[0]
    ceiling = table(np.full((1, cpm.size), np.log(_HIGHEST_CPM / 1e6)))[0]
    level = np.maximum(low, np.minimum(free, top + ceiling))
    return table.invert(np.maximum(level, 1e-4)[None, :])[0]


def _check_room(plan: _Plan, names: np.ndarray, tau: float) -> None:
    """Refuses panels that would hold more UMIs than the transcriptome they are part of."""
    log_mean = plan.base + plan.noise.variance / 2 + plan.fold + plan.shift + tau**2 * plan.fold**2 / 2
    share = np.exp(log_mean).sum(1)
    worst = share.argmax()
    if share[worst] > _LARGEST_PANEL:
        raise InputError(
            f"the {plan.base.size} genes would fill {share[worst]:.2f} of the transcriptome in "
            f"{names[worst]} (at most {_LARGEST_PANEL}): lower median_cpm, or check "
            "the scale of the table of effects"
        )


def _fold_of_pseudobulk(
    base: np.ndarray, sigma: np.ndarray, delta: np.ndarray, escape: float, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log fold changes of responding cells such that a condition's pooled cells change by ``delta``."""
    rest = np.exp(base + sigma**2 / 2)
    pooled = np.expm1(np.log1p(1e6 * rest) + delta) / 1e6
    # Escaped cells alone may hold more than the pool should: the responders' share then stops at a fiftieth.
    responding = np.maximum((pooled - escape * rest) / (1 - escape), 0.02 * rest)
    fold = np.log(responding / rest)
    return fold.astype(np.float32), (-(tau**2) * fold**2 / 2).astype(np.float32)


def _fold_of_mean_log(
    base: np.ndarray, table: ExpectedLog, delta: np.ndarray, escape: float, tau: float
) -> tuple[np.ndarray, np.ndarray]:
    """Log fold changes of responding cells such that mean log-expression changes by ``delta``."""
    rest = table(base[None, :])
    wanted = rest + delta / (1 - escape)
    low = np.full(delta.shape, -_LARGEST_LOG_FOLD, dtype=np.float32)
    high = -low
    for _ in range(24):
        middle = (low + high) / 2
        short = sum(w * table(base + z * middle) for z, w in _strengths(tau)) < wanted
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    fold = np.where(delta == 0, 0, (low + high) / 2).astype(np.float32)
    return fold, np.zeros_like(fold)


def _strengths(tau: float) -> list[tuple[float, float]]:
    """Nodes and weights of a response's strength, normal around 1."""
    z, weights = np.polynomial.hermite_e.hermegauss(7)
    return [(float(1 + tau * node), float(w)) for node, w in zip(z, weights / weights.sum(), strict=True)]


def _expected_effects(
    plan: _Plan, table: ExpectedLog, escape: float, tau: float
) -> Float[np.ndarray, "conditions genes"]:
    rest = table(plan.base[None, :])
    effect = np.empty((plan.fold.shape[0] - 1, plan.base.size), dtype=np.float32)
    # In strips, so that a genome-wide table does not need a dozen copies of itself.
    for start in range(0, effect.shape[0], 64):
        rows = slice(start + 1, start + 65)
        level = sum(w * table(plan.base + z * plan.fold[rows] + plan.shift[rows]) for z, w in _strengths(tau))
        effect[start : start + 64] = (1 - escape) * (level - rest)
    return effect


def _draw(
    plan: _Plan,
    condition: np.ndarray,
    batch: np.ndarray,
    depths: np.ndarray,
    escape: float,
    tau: float,
    seed: int,
) -> sp.csr_matrix:
    """Counts block by block straight to CSR; each block has its own stream, so threads change nothing."""
    starts = range(0, condition.size, _BLOCK)
    programme = plan.noise.programme.astype(np.float32)
    resting = (plan.base + plan.noise.batch).astype(np.float32)

    def block(start: int) -> sp.csr_matrix:
        rng = np.random.default_rng([seed, 1, start])
        rows = slice(start, start + _BLOCK)
        which = condition[rows]
        n = which.size
        works = (rng.random(n) >= escape).astype(np.float32)[:, None]
        strength = (1 + tau * rng.standard_normal(n)).astype(np.float32)[:, None]
        rate = strength * plan.fold[which]
        rate += plan.shift[which]
        rate *= works
        state = rng.standard_normal((n, programme.shape[0]), dtype=np.float32)
        rate += state @ programme
        rate += resting[batch[rows]]
        np.exp(rate, out=rate)
        rate *= depths[rows, None].astype(np.float32)
        return sp.csr_matrix(negative_binomial(rng, rate, plan.noise.dispersion).astype(np.int32))

    return sp.vstack(list(_in_order(block, starts)), format="csr")


def _in_order(work, items) -> Iterator[sp.csr_matrix]:
    """Maps with as many threads as processors; numpy's generators release the lock while they draw."""
    with ThreadPoolExecutor(max_workers=max(1, min(8, os.cpu_count() or 1))) as pool:
        yield from pool.map(work, items)
