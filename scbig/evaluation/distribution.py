"""Distances between populations of cells in one fixed space, and correlations within them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.errors import InputError, some
from scbig.rng import generator

__all__ = [
    "Space",
    "assigned",
    "correlations",
    "draw_rows",
    "e_distance",
    "gaussian_kernel",
    "mean_distance",
    "pair_means",
    "self_transport",
    "squared_distances",
    "transport",
]

_CHUNK = 4_000_000  # distances held at once: 32 MB, some four times that with temporaries
_ITERATIONS = 1_000  # of Sinkhorn, at most; typically some 50
_TOLERANCE = 1e-4  # total error of the plan's row sums; the value's error is of second order in it
_WIDEST = 1e100  # scalings beyond this are taken up into the potentials
_CONSTANT = 1e-20  # variance over mean square below which a gene is constant: rounding of float64 sums
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
        x: Any,
        n: int = 50,
        seed: int = 0,
        genes: Iterable[str] = (),
    ) -> Space:
        """Fits the leading ``n`` components, fewer where the data has fewer.

        Args:
            x: log-expression, cells by genes; real training cells. Dense, sparse, or rows on disk that slices and
                ascending places read: no more than a block of them is then held.
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
            block = x[start : start + 8192]
            # Dense products of single cells are faster than sparse ones.
            block = np.asarray(block.toarray() if sp.issparse(block) else block, np.float64)
            total += block.sum(axis=0)
            gram += block.T @ block
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
        x = sp.csr_array(x[0 : x.shape[0]]).astype(np.float64)
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


def squared_distances(x: Float[np.ndarray, "n dims"], y: Float[np.ndarray, "m dims"]) -> Float[np.ndarray, "n m"]:
    """Squared Euclidean distances of every cell of one population to every cell of the other, never negative."""
    # Differences of squared norms lose digits far from the origin.
    centre = y.mean(axis=0)
    x, y = x - centre, y - centre
    out = -2.0 * (x @ y.T)
    out += (x * x).sum(axis=1)[:, None]
    out += (y * y).sum(axis=1)
    return np.maximum(out, 0.0, out=out)


def gaussian_kernel(squared: Float[np.ndarray, "n m"], bandwidths: tuple[float, ...]) -> Float[np.ndarray, "n m"]:
    """The mean of several Gaussian kernels, ``exp(−d²/2h²)``.

    Args:
        squared: squared distances.
        bandwidths: each h, best in descending order.
    """
    total, last, values = np.zeros_like(squared), np.inf, None
    for h in bandwidths:
        if last == 2.0 * h:
            # Half the width is the fourth power: far cheaper than another exponential.
            values *= values
            values *= values
        else:
            values = np.exp(squared * (-0.5 / h**2))
        total += values
        last = h
    total /= len(bandwidths)
    return total


def pair_means(
    x: Float[np.ndarray, "n dims"], y: Float[np.ndarray, "m dims"] | None, bandwidths: tuple[float, ...]
) -> tuple[float, float]:
    """Mean Euclidean distance and mean Gaussian kernel over pairs of cells, in bounded memory.

    Args:
        x: one population, of two cells at least.
        y: the other; None for pairs of different cells of ``x``.
        bandwidths: as in ``gaussian_kernel``.
    """
    other = x if y is None else y
    distance, kernel = 0.0, 0.0
    step = max(1, _CHUNK // len(other))
    for start in range(0, len(x), step):
        squared = squared_distances(x[start : start + step], other)
        if y is None:
            at = np.arange(len(squared))
            squared[at, start + at] = 0.0
        distance += float(np.sqrt(squared).sum())
        kernel += float(gaussian_kernel(squared, bandwidths).sum())
    if y is None:
        pairs = len(x) * (len(x) - 1)
        return distance / pairs, (kernel - len(x)) / pairs  # a cell's kernel with itself is 1
    return distance / (len(x) * len(y)), kernel / (len(x) * len(y))


def draw_rows(x: Float[np.ndarray, "cells dims"], n: int, purpose: str) -> Int[np.ndarray, " drawn"]:
    """Up to ``n`` cells, the same ones whatever their order.

    Args:
        x: coordinates of the cells.
        n: how many; all where there are no more.
        purpose: names the draw; another name gives other cells.
    """
    if len(x) <= n:
        return np.arange(len(x))
    order = np.lexsort(x.T[::-1])
    return order[np.sort(generator(0, f"evaluation {purpose}").choice(len(x), n, replace=False))]


def assigned(
    squared: Float[np.ndarray, "n m"], x: Float[np.ndarray, "n dims"], y: Float[np.ndarray, "m dims"]
) -> float:
    """Wasserstein distance of order 1: the mean Euclidean distance of the best one-to-one assignment, exact.

    Args:
        squared: squared distances between the cells of ``x`` and ``y``.
        x: one population; of the larger one a draw takes part.
        y: the other.
    """
    from scipy.optimize import linear_sum_assignment

    n = min(squared.shape)
    if squared.shape != (n, n):
        squared = squared[np.ix_(draw_rows(x, n, "assignment"), draw_rows(y, n, "assignment"))]
    cost = np.sqrt(squared)
    # Constants per row and column do not change the assignment, and the search ends sooner.
    rows = cost.min(axis=1, keepdims=True)
    reduced = cost - rows
    reduced -= reduced.min(axis=0)
    return float(cost[linear_sum_assignment(reduced)].mean())


def transport(cost: Float[np.ndarray, "n m"], epsilon: float) -> float:
    """Entropic transport cost between uniform weights: the dual optimum, entropy relative to the product of weights.

    Scaling of a stabilised kernel (Schmitzer 2019, section 3). Potentials begin so that every row and column of the
    kernel has an entry of 1, and take up scalings that grow large: no row or column underflows, at any ε.

    Args:
        cost: of each pair.
        epsilon: regularisation, in units of the cost.
    """
    f = cost.min(axis=1)
    g = (cost - f[:, None]).min(axis=0)
    u, v = np.ones(len(f)), np.ones(len(g))
    kernel = _scaled(cost, f, g, epsilon)
    for _ in range(_ITERATIONS):
        before, u = u, 1.0 / (kernel @ v / len(v))
        # The plan of the last scalings has row sums ``before / u``, times their weight.
        settled = np.abs(before / u - 1.0).mean() < _TOLERANCE
        v = 1.0 / (u @ kernel / len(u))
        if settled:
            break
        if max(u.max(), v.max(), 1.0 / u.min(), 1.0 / v.min()) > _WIDEST:
            f, g = f + epsilon * np.log(u), g + epsilon * np.log(v)
            kernel, u, v = _scaled(cost, f, g, epsilon), np.ones(len(f)), np.ones(len(g))
    # Columns came last, so the plan has mass one and the dual objective is the sum of the potentials.
    return float((f + epsilon * np.log(u)).mean() + (g + epsilon * np.log(v)).mean())


def _scaled(cost: np.ndarray, f: np.ndarray, g: np.ndarray, epsilon: float) -> np.ndarray:
    return np.exp((f[:, None] + g - cost) / epsilon)


def self_transport(cost: Float[np.ndarray, "n n"], epsilon: float) -> float:
    """The same of a population with itself, by averaged updates, which converge fast (Feydy et al. 2019).

    Args:
        cost: of each pair; taken to be zero on the diagonal.
        epsilon: regularisation, in units of the cost.
    """
    kernel = np.exp(-cost / epsilon)
    np.fill_diagonal(kernel, 1.0)  # so that no row of the kernel underflows
    u = np.ones(len(cost))
    for _ in range(_ITERATIONS):
        sums = u * (kernel @ u) / len(u)
        if np.abs(sums - 1.0).mean() < _TOLERANCE:
            break
        u = u / np.sqrt(sums)
    return float(2.0 * epsilon * np.log(u).mean() - epsilon * ((u * (kernel @ u)).mean() / len(u) - 1.0))


def correlations(x: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, "genes genes"]:
    """Pearson correlations between columns; 0 with a constant column and on the diagonal.

    Args:
        x: log-expression, cells by genes or by modules.
    """
    mean = x.mean(axis=0)
    x = x - mean
    variance = (x * x).mean(axis=0)
    constant = variance <= _CONSTANT * (variance + mean**2)
    x *= np.where(constant, 0.0, 1.0 / np.sqrt(np.where(constant, 1.0, variance)))
    out = x.T @ x / len(x)
    np.fill_diagonal(out, 0.0)
    return out
