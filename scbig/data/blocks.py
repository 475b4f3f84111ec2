"""Preprocessing of one block of rows: the same functions work on a screen in memory and on Dask workers."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.data.conditions import CONTROL, as_text, genes_of
from scbig.errors import InputError, some

__all__ = ["Knockdown", "dispersions", "log_scaled", "moments"]


def log_scaled(counts: sp.csr_matrix, scale: Float[np.ndarray, " rows"]) -> Float[np.ndarray, " values"]:
    """log(1 + count × scale of its row) of every stored value, in float32."""
    return np.log1p(counts.data * np.repeat(scale, np.diff(counts.indptr))).astype(np.float32)


def moments(expression: sp.csr_matrix) -> tuple[Float[np.ndarray, " genes"], Float[np.ndarray, " genes"]]:
    """Sums over cells of exp(x) − 1 and of its square, for every gene, in float64."""
    values = np.expm1(expression.data.astype(np.float64))
    total = np.bincount(expression.indices, weights=values, minlength=expression.shape[1])
    return total, np.bincount(expression.indices, weights=values * values, minlength=expression.shape[1])


def dispersions(
    total: Float[np.ndarray, " genes"], squares: Float[np.ndarray, " genes"], n_cells: int
) -> Float[np.ndarray, " genes"]:
    """Normalised dispersion of every gene (Satija et al. 2015; scanpy's "seurat").

    The log of variance over mean of exp(x) − 1, standardised within 20 bins of genes of similar mean; the
    only gene of a bin gets 1.

    Args:
        total: sums over cells of exp(x) − 1.
        squares: sums of their squares.
        n_cells: the cells summed over.

    Returns:
        One value per gene, higher for more variable genes; NaN for genes that do not vary.
    """
    mean = total / n_cells
    variance = (squares / n_cells - mean**2) * n_cells / max(1, n_cells - 1)
    varies = (variance > 1e-12) & (mean > 0)
    score = np.full(len(mean), np.nan)
    score[varies] = np.log(variance[varies] / mean[varies])
    frame = pd.DataFrame({"score": score, "bin": pd.cut(np.log1p(np.maximum(mean, 1e-12)), bins=20)})
    groups = frame.groupby("bin", observed=True)["score"]
    centre, spread = groups.transform("mean").to_numpy(), groups.transform("std").to_numpy()
    alone = np.isnan(spread)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(alone & varies, 1.0, (score - centre) / np.where(alone, 1.0, spread))


@dataclass(frozen=True)
class Knockdown:
    """Which perturbed gene to look at in which cell, and which controls to compare with.

    Attributes:
        columns: places in ``var`` of the perturbed genes that are measured.
        own: for every cell its perturbed genes as places in ``columns``, −1 where there are fewer.
        place: number of the context of every cell.
        control: which cells are controls.
        n_controls: controls of every context.
    """

    columns: Int[np.ndarray, " targets"]
    own: Int[np.ndarray, "cells most"]
    place: Int[np.ndarray, " cells"]
    control: Bool[np.ndarray, " cells"]
    n_controls: Int[np.ndarray, " contexts"]

    @classmethod
    def plan(cls, obs: pd.DataFrame, genes: pd.Index) -> Knockdown:
        """What to look at in the cells of ``obs`` and the genes of ``var``.

        Raises:
            InputError: a context has no controls.
        """
        rows_of = defaultdict(list)
        for name, rows in obs.groupby("condition", observed=True).indices.items():
            for gene in genes_of(name):
                rows_of[gene].append(rows)
        contexts, place = np.unique(as_text(obs["context"]).to_numpy(dtype=object), return_inverse=True)
        control = (as_text(obs["condition"]) == CONTROL).to_numpy()
        n_controls = np.bincount(place[control], minlength=len(contexts))
        if not n_controls.all():
            raise InputError(
                f"no control cells in the context {some(contexts[n_controls == 0])} to compare perturbed genes "
                "to: leave out --config.data.knockdown"
            )
        measured = sorted(set(rows_of) & set(genes))
        used = np.zeros(len(obs), dtype=np.int64)
        most = max((len(genes_of(name)) for name in as_text(obs["condition"]).unique()), default=0)
        own = np.full((len(obs), max(1, most)), -1, dtype=np.int32)
        for number, gene in enumerate(measured):
            for rows in rows_of[gene]:
                own[rows, used[rows]] = number
                used[rows] += 1
        return cls(genes.get_indexer(measured), own, place, control, n_controls)

    def rows(self, start: int, stop: int) -> Knockdown:
        """The part of it that a block of cells needs."""
        here = slice(start, stop)
        return Knockdown(self.columns, self.own[here], self.place[here], self.control[here], self.n_controls)

    def measure(
        self, expression: sp.csr_matrix
    ) -> tuple[Float[np.ndarray, "contexts targets"], Float[np.ndarray, "rows most"]]:
        """Sums over the controls of each context, and every cell's own perturbed genes, in a block of these cells."""
        chosen = expression[:, self.columns].astype(np.float64)
        rows = np.flatnonzero(self.control)
        ones = (np.ones(len(rows)), (self.place[rows], rows))
        sums = sp.csr_matrix(ones, shape=(len(self.n_controls), len(self.control))) @ chosen
        # One column more, of zeros, stands for the genes that a cell does not have.
        dense = np.pad(chosen.toarray(), ((0, 0), (0, 1)))
        return sums.toarray(), np.take_along_axis(dense, self.own.astype(np.int64) % dense.shape[1], axis=1)

    def moved(
        self,
        sums: Float[np.ndarray, "contexts targets"],
        values: Float[np.ndarray, "cells most"],
        sign: float,
        min_change: float,
    ) -> Bool[np.ndarray, " cells"]:
        """Which cells stay: all their genes lie beyond the controls' mean by more than ``min_change``."""
        means = np.pad(sums / self.n_controls[:, None], ((0, 0), (0, 1)))
        change = sign * (values - means[self.place[:, None], self.own])
        return ((change > min_change) | (self.own < 0)).all(axis=1)
