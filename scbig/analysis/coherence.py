"""Are genes of a module more correlated than chance would have it?"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scbig.analysis.permutation import false_discovery
from scbig.errors import InputError
from scbig.rng import generator

__all__ = ["coherence", "correlation"]


def correlation(x: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, "genes genes"]:
    """Pearson correlations of genes over cells; NaN with a gene that does not vary, 1 on the diagonal elsewhere."""
    away = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    size = np.sqrt((away**2).sum(axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(size > 1e-9, away / size, np.nan)
    return z.T @ z


def coherence(
    x: Float[np.ndarray, "cells genes"],
    module: Int[np.ndarray, " genes"],
    *,
    draws: int = 200,
    permutations: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Are genes of a module more correlated with each other than with other genes, and than chance would have it?

    The null permutes modules among genes of like mean expression (ten bins): strongly expressed genes correlate more than
    weak ones only because less of their variance is counting noise, and modules must not profit from that.

    Args:
        x: log-expression of cells of one kind, such as controls.
        module: of each gene.
        draws: of the bootstrap over cells, behind ``low`` and ``high`` (95%).
        permutations: of the modules.
        seed: of both.

    Returns:
        A row per module, and a last one with ``module`` −1 for all of them (weighed by pairs of genes): ``genes`` that
        vary, ``within`` and ``between``, mean correlations among its genes and with those of others; ``difference`` with
        ``low`` and ``high``; ``expected`` difference and its ``sd`` under permutation, ``z``, ``p`` (one-sided) and ``q``.
        A module with fewer than two genes that vary is NaN.

    Raises:
        InputError: fewer than three cells.
    """
    if len(x) < 3:
        raise InputError(f"{len(x)} cells: correlations need three at least")
    n_modules = int(module.max()) + 1
    away = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    spread = np.sqrt((away**2).mean(axis=0))
    varies = spread > 1e-9
    z, own = away[:, varies] / spread[varies], module[varies]
    member = np.zeros((len(own), n_modules))
    member[np.arange(len(own)), own] = 1.0
    sizes = member.sum(axis=0)
    # Sums over genes of a module are all that means of correlations need.
    sums, squares = z @ member, (z * z) @ member
    observed = _within_between(sums, squares, sizes, np.full(len(x), 1.0 / len(x)))
    rng = generator(seed, "coherence cells")
    drawn = np.stack([
        np.subtract(*_within_between(sums, squares, sizes, rng.multinomial(len(x), np.full(len(x), 1 / len(x))) / len(x)))
        for _ in range(draws)
    ])  # fmt: skip
    null = _permuted(z, own, x[:, varies].mean(axis=0), sizes, permutations, seed)
    difference = observed[0] - observed[1]
    z_score = (difference - null.mean(axis=0)) / null.std(axis=0, ddof=1)
    p = np.where(np.isnan(difference), np.nan, (1 + (null >= difference).sum(axis=0)) / (1 + len(null)))
    q = np.append(false_discovery(p[:-1]), p[-1])  # the last is all modules together: one test
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return pd.DataFrame({
        "module": [*range(n_modules), -1], "genes": [*sizes.astype(int).tolist(), len(own)], "within": observed[0],
        "between": observed[1], "difference": difference, "low": low, "high": high, "expected": null.mean(axis=0),
        "sd": null.std(axis=0, ddof=1), "z": z_score, "p": p, "q": q,
    })  # fmt: skip


def _within_between(sums, squares, sizes, weight) -> tuple[np.ndarray, np.ndarray]:
    """Mean correlation within each module and with genes of others, then the same over all pairs of genes."""
    centred = sums - weight @ sums
    gram = (centred * weight[:, None]).T @ centred
    own = weight @ squares  # a gene with itself
    pairs, others = sizes * (sizes - 1), sizes * (sizes.sum() - sizes)
    within, between = np.diag(gram) - own, gram.sum(axis=1) - np.diag(gram)
    with np.errstate(invalid="ignore", divide="ignore"):
        each = np.where(pairs > 0, within / pairs, np.nan), np.where(pairs > 0, between / others, np.nan)
        every = within.sum() / pairs.sum(), between.sum() / others.sum()
    return np.append(each[0], every[0]), np.append(each[1], every[1])


def _permuted(z, own, mean, sizes, permutations: int, seed: int) -> np.ndarray:
    """Differences of mean correlations with modules permuted among genes of like expression."""
    bins = np.array_split(np.argsort(mean, kind="stable"), min(10, max(1, len(own) // 5)))
    correlations = z.T @ z / len(z)
    rng, out = generator(seed, "coherence modules"), []
    for _ in range(permutations):
        labels = own.copy()
        for rows in bins:
            labels[rows] = rng.permutation(own[rows])
        member = np.zeros((len(own), len(sizes)))
        member[np.arange(len(own)), labels] = 1.0
        sums = member.T @ correlations @ member
        pairs, others = sizes * (sizes - 1), sizes * (sizes.sum() - sizes)
        within, between = np.diag(sums) - sizes, sums.sum(axis=1) - np.diag(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            each = within / pairs - between / others
            out.append(np.append(each, within.sum() / pairs.sum() - between.sum() / others.sum()))
    return np.stack(out)
