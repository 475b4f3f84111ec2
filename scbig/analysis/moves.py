"""How far conditions move the mean expression of modules, measured against matched controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from scbig.analysis.permutation import false_discovery
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some
from scbig.modules import Modules

__all__ = ["changes", "module_scores", "welch"]

_LEVEL = 0.95  # of intervals

Matrix: TypeAlias = np.ndarray | sp.spmatrix | sp.sparray


def module_scores(x: Matrix, modules: Modules, without: Sequence[str] = ()) -> Float[np.ndarray, "cells modules"]:
    """Mean log-expression of each module's genes in each cell, in double precision.

    Args:
        x: log-expression ``[cells, genes]``, genes in the order of ``modules.genes``.
        modules: the partition.
        without: genes that do not count, such as those perturbed; a module of nothing else is NaN.
    """
    left = set(without)
    counts = np.array([gene not in left for gene in modules.genes], np.float64)
    size = np.bincount(modules.module, counts, modules.n_modules)
    member = np.zeros((len(modules.genes), modules.n_modules))
    member[np.arange(len(modules.genes)), modules.module] = counts
    with np.errstate(invalid="ignore"):
        return np.asarray(x @ member, np.float64) / np.where(size > 0, size, np.nan)


def welch(
    treated: Float[np.ndarray, "n modules"],
    control: Float[np.ndarray, "m modules"],
    strata: np.ndarray | None = None,
    control_strata: np.ndarray | None = None,
    level: float = _LEVEL,
) -> pd.DataFrame:
    """Difference of means with Welch's interval and test, column by column, matched by stratum.

    Treated cells of a stratum (a batch) are compared with the controls of the same stratum, and strata count by their
    treated cells; where a stratum has no control, all controls stand in. Variances are pooled within strata, and degrees
    of freedom are those of Welch (1947) and Satterthwaite. Cells are taken to be independent within a stratum: what
    differs between guides or between replicates of a batch is not in the interval.

    Args:
        treated: scores of the cells of a condition.
        control: scores of control cells.
        strata: of the treated cells; one for all if None.
        control_strata: of the controls.
        level: of the interval.

    Returns:
        A row per column with ``change``, ``se``, ``df``, ``low``, ``high`` and ``p``.

    Raises:
        InputError: fewer than two treated or control cells.
    """
    from scipy import stats

    if min(len(treated), len(control)) < 2:
        raise InputError(f"{len(treated)} perturbed and {len(control)} control cells: at least two of each are needed")
    own = np.zeros(len(treated), int) if strata is None else np.asarray(strata).astype(str)
    base = np.zeros(len(control), int) if control_strata is None else np.asarray(control_strata).astype(str)
    var_t, df_t = _pooled(treated, own)
    var_c, df_c = _pooled(control, base)
    change = np.zeros(treated.shape[1])
    weight_c = np.zeros(len(control))  # of each control cell in the difference
    for name in np.unique(own):
        share = float((own == name).mean())
        there = base == name
        there = there if there.any() else np.ones(len(control), bool)
        change += share * (treated[own == name].mean(axis=0) - control[there].mean(axis=0))
        weight_c[there] += share / there.sum()
    part_t, part_c = var_t / len(treated), var_c * float((weight_c**2).sum())
    variance = part_t + part_c
    se = np.sqrt(variance)
    with np.errstate(invalid="ignore", divide="ignore"):
        df = variance**2 / (part_t**2 / df_t + part_c**2 / df_c)
        p = 2 * stats.t.sf(np.abs(change) / se, df)
    # Cells that are all alike differ for certain or not at all.
    p = np.where(se > 0, p, np.where(change == 0, 1.0, 0.0))
    p, df = np.where(np.isnan(change), np.nan, p), np.where(se > 0, df, np.inf)
    half = stats.t.ppf((1 + level) / 2, df) * se
    return pd.DataFrame({"change": change, "se": se, "df": df, "low": change - half, "high": change + half, "p": p})


def _pooled(x: np.ndarray, strata: np.ndarray) -> tuple[np.ndarray, int]:
    """Variance within strata and its degrees of freedom; over all cells where no stratum has two."""
    names, number, count = np.unique(strata, return_inverse=True, return_counts=True)
    df = len(x) - len(names)
    if df < 1:
        return x.var(axis=0, ddof=1), len(x) - 1
    total = np.zeros((len(names), x.shape[1]))
    np.add.at(total, number, x)
    away = x - (total / count[:, None])[number]
    return (away**2).sum(axis=0) / df, df


def changes(
    x: Matrix,
    obs: pd.DataFrame,
    modules: Modules,
    conditions: Mapping[tuple[str, str], np.ndarray],
    names: Sequence[str] = (),
) -> pd.DataFrame:
    """The measured change of every module in every condition, against controls of the same context and batch.

    Perturbed genes do not count in the modules that hold them.

    Args:
        x: log-expression ``[cells, genes]``, genes in the order of ``modules.genes``.
        obs: ``condition``, ``context`` and, where there are any, ``batch`` of every cell.
        modules: the partition.
        conditions: by condition and context the rows of its cells; those with fewer than two are left out.
        names: of the modules.

    Returns:
        A row per condition, context and module: ``change`` of mean log-expression, its ``se``, ``low`` and ``high`` (95%),
        ``p``, and ``q`` by Benjamini and Hochberg over all rows; ``n_cells`` and ``n_control``.

    Raises:
        InputError: a context without two control cells, named.
    """
    control = obs["condition"].astype(str).to_numpy() == CONTROL
    context = obs["context"].astype(str).to_numpy()
    batch = obs["batch"].astype(str).to_numpy() if "batch" in obs else np.full(len(obs), "")
    bare = sorted({c for _, c in conditions if (control & (context == c)).sum() < 2})
    if bare:
        raise InputError(f"fewer than two control cells in context {some(bare)}: changes cannot be measured there")
    pool = {c: np.flatnonzero(control & (context == c)) for _, c in conditions}
    sums = {c: (_columns(x[rows]), module_scores(x[rows], modules) * modules.sizes) for c, rows in pool.items()}
    tables = []
    for (condition, where), rows in conditions.items():
        if len(rows) < 2:
            continue
        own = genes_of(condition)
        base = pool[where]
        table = welch(module_scores(x[rows], modules, own), _less(*sums[where], modules, own), batch[rows], batch[base])
        table.insert(0, "condition", condition)
        table.insert(1, "context", where)
        table.insert(2, "module", range(modules.n_modules))
        table.insert(3, "name", list(names) or [f"M{k}" for k in range(modules.n_modules)])
        tables.append(table.assign(n_cells=len(rows), n_control=len(base)))
    if not tables:
        columns = ["condition", "context", "module", "name", "change", "se", "df", "low", "high", "p", "n_cells"]
        return pd.DataFrame(columns=[*columns, "n_control", "q"])
    found = pd.concat(tables, ignore_index=True)
    return found.assign(q=false_discovery(found["p"].to_numpy(np.float64)))


def _columns(x: Matrix) -> Matrix:
    """The same, quick to take columns of."""
    return sp.csc_array(x) if sp.issparse(x) else x


def _less(x: Matrix, sums: np.ndarray, modules: Modules, without: Sequence[str]) -> np.ndarray:
    """:func:`module_scores` from sums over all genes: controls are looked at once for all conditions."""
    sums, size = sums.copy(), modules.sizes.astype(np.float64)
    left = set(without)
    for place in (i for i, gene in enumerate(modules.genes) if gene in left):
        column = x[:, [place]]
        k = modules.module[place]
        sums[:, k] -= np.asarray(column.todense() if sp.issparse(column) else column, np.float64).ravel()
        size[k] -= 1
    return sums / np.where(size > 0, size, np.nan)
