"""Distances between populations of cells, in one fixed space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = ["Space", "e_distance", "mean_distance"]

_CHUNK = 4_000_000  # distances held at once: 32 MB, some four times that with temporaries
_EXACT = 4_000  # genes up to which the covariance matrix is decomposed whole
_MOST_CELLS = 20_000  # training cells looked at beyond that


@dataclass(frozen=True)
class Space:
    """Principal components of real cells, the same for every method.

    Attributes:
        genes: symbols, one per column of ``components``; empty where they were not given.
        mean: mean log-expression of the cells that it was fitted on.
        components: orthonormal rows, leading first.
        explained: share of the total variance that each component holds.
    """

    genes: tuple[str, ...]
    mean: Float[np.ndarray, " genes"]
    components: Float[np.ndarray, "dims genes"]
    explained: Float[np.ndarray, " dims"]

    @classmethod
    def fit(
        cls,
        x: np.ndarray | sp.spmatrix | sp.sparray,
        n: int = 50,
        seed: int = 0,
        genes: Iterable[str] = (),
    ) -> Space:
        """Fits the leading ``n`` components, fewer where the data has fewer.

        Args:
            x: log-expression, cells by genes; real training cells.
            n: how many components.
            seed: of the subsample that is drawn where there are more than 4,000 genes.
            genes: symbols of the columns; without them the space fits columns of the same order only.

        Raises:
            InputError: fewer than two cells.
        """
        genes = tuple(map(str, genes))
        if x.shape[0] < 2:
            raise InputError("the evaluation space needs at least two real training cells")
        n = min(n, x.shape[0] - 1, x.shape[1])
        if x.shape[1] > _EXACT:
            return cls._fit_large(x, genes, n, seed)
        total = np.zeros(x.shape[1])
        gram = np.zeros((x.shape[1], x.shape[1]))
        for start in range(0, x.shape[0], 8192):
            block = x[start : start + 8192].astype(np.float64)
            total += np.asarray(block.sum(axis=0)).ravel()
            product = block.T @ block
            gram += product.toarray() if sp.issparse(product) else product
        mean = total / x.shape[0]
        covariance = gram / x.shape[0] - np.outer(mean, mean)
        values, vectors = np.linalg.eigh(covariance)
        values, vectors = values[::-1][:n], vectors[:, ::-1][:, :n]
        spread = max(float(np.trace(covariance)), 1e-300)
        return cls(genes, mean, _signed(vectors.T), np.maximum(values, 0.0) / spread)

    @classmethod
    def _fit_large(cls, x, genes: tuple[str, ...], n: int, seed: int) -> Space:
        from sklearn.decomposition import PCA

        if x.shape[0] > _MOST_CELLS:
            rows = generator(seed, "evaluation space").choice(x.shape[0], _MOST_CELLS, replace=False)
            x = x[np.sort(rows)]
        x = sp.csr_array(x).astype(np.float64)
        fitted = PCA(min(n, min(x.shape) - 1), svd_solver="arpack", random_state=seed).fit(x)
        return cls(
            genes,
            fitted.mean_.astype(np.float64),
            _signed(fitted.components_.astype(np.float64)),
            fitted.explained_variance_ratio_.astype(np.float64),
        )

    def project(
        self, x: np.ndarray | sp.spmatrix | sp.sparray, without: Iterable[str] = ()
    ) -> Float[np.ndarray, "cells dims"]:
        """Coordinates of cells, float64.

        Args:
            x: log-expression, cells by genes, columns as in ``genes``.
            without: genes that do not count: as if every cell had their mean.

        Raises:
            InputError: ``x`` has another number of genes.
        """
        if x.shape[1] != len(self.mean):
            raise InputError(f"cells of {x.shape[1]} genes do not fit a space of {len(self.mean)} genes")
        left_out = set(without)
        rows = [i for i, gene in enumerate(self.genes) if gene in left_out] if left_out else []
        components = self.components
        if rows:
            components = components.copy()
            components[:, rows] = 0.0
        y = x @ components.T
        return np.asarray(y, dtype=np.float64) - components @ self.mean

    def aligned(self, genes: Iterable[str]) -> Space:
        """The same space with its genes in another order.

        Raises:
            InputError: genes that the space does not have, or has beyond those, named.
        """
        genes = tuple(map(str, genes))
        if genes == self.genes:
            return self
        if not self.genes:
            raise InputError("the evaluation space does not name its genes: give them to Space.fit")
        odd = sorted(set(genes) ^ set(self.genes))
        if odd:
            raise InputError(f"the evaluation space was fitted on other genes; they differ in {some(odd)}")
        at = {g: i for i, g in enumerate(self.genes)}
        order = [at[g] for g in genes]
        return Space(genes, self.mean[order], self.components[:, order], self.explained)


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Each row with its largest entry positive, so that the space does not depend on the solver's mood."""
    largest = np.abs(vectors).argmax(axis=1)
    return vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]


def mean_distance(x: Float[np.ndarray, "n dims"], y: Float[np.ndarray, "m dims"] | None = None) -> float:
    """Mean Euclidean distance between two populations, or within one over pairs of different cells.

    Args:
        x: one population.
        y: the other; None for distances within ``x``.

    Returns:
        The mean; NaN within a population of one cell.
    """
    within = y is None
    y = x if y is None else y
    if within and len(x) < 2:
        return float("nan")
    # Differences of squared norms lose digits far from the origin.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    norm_y = (y * y).sum(axis=1)
    total, step = 0.0, max(1, _CHUNK // len(y))
    for start in range(0, len(x), step):
        block = x[start : start + step]
        squared = (block * block).sum(axis=1)[:, None] + norm_y - 2.0 * (block @ y.T)
        if within:
            squared[np.arange(len(block)), np.arange(start, start + len(block))] = 0.0
        total += float(np.sqrt(np.maximum(squared, 0.0)).sum())
    return total / (len(x) * (len(x) - 1) if within else len(x) * len(y))


def e_distance(
    x: Float[np.ndarray, "n dims"],
    y: Float[np.ndarray, "m dims"],
    within_x: float | None = None,
    within_y: float | None = None,
) -> float:
    """``2E‖X−Y‖ − E‖X−X'‖ − E‖Y−Y'‖``, Euclidean norm, unbiased: no cell is compared with itself.

    Székely and Rizzo 2013. Being unbiased, it may fall a little below zero for equal populations. Memory
    does not grow with the number of cells beyond that of the inputs.

    Args:
        x: one population in a fixed space.
        y: the other.
        within_x: ``mean_distance(x)`` where it is known already.
        within_y: ``mean_distance(y)`` where it is known already.

    Returns:
        The distance; NaN where a population has a single cell.
    """
    within_x = mean_distance(x) if within_x is None else within_x
    within_y = mean_distance(y) if within_y is None else within_y
    return 2.0 * mean_distance(x, y) - within_x - within_y
