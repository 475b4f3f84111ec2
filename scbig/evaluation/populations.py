"""Every distance between a predicted and a real population, with what they share computed once."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.baselines import group_means
from scbig.errors import InputError
from scbig.evaluation.distribution import (
    Space,
    assigned,
    correlations,
    draw_rows,
    gaussian_kernel,
    pair_means,
    self_transport,
    squared_distances,
    transport,
)
from scbig.rng import generator

__all__ = ["POPULATION_METRICS", "Population", "Reference", "Yardstick"]

Matrix: TypeAlias = np.ndarray | sp.spmatrix | sp.sparray

POPULATION_METRICS = (
    "e_distance",
    "mmd",
    "wasserstein",
    "sinkhorn_divergence",
    "variance_ratio",
    "coexpression_error",
    "coexpression_error_modules",
    "mse_cells",
)
"""What ``Reference.score`` gives, in the order of tables."""

_MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)  # of the median distance
_FITTED = 2_000  # training cells that kernel widths and ε are measured on
_MOST = 2_000  # cells of each side between which transport is solved
_VALUES = 4_000_000  # held at once: 32 MB


@dataclass(frozen=True)
class Yardstick:
    """What distances between populations need, fitted once on real training cells and the same for every method.

    Attributes:
        space: where populations are compared.
        bandwidths: standard deviations of the Gaussian kernels, descending, in units of the space: 0.25 to 4
            times the median distance between real training cells.
        epsilon: of entropic transport, in squared units of the space.
        relative_epsilon: that over the mean squared distance between real training cells.
        variable: places of the genes of largest variance, descending.
        modules: the module of each gene, negative for none.
    """

    space: Space
    bandwidths: tuple[float, ...]
    epsilon: float
    relative_epsilon: float
    variable: Int[np.ndarray, " variable"]
    modules: Int[np.ndarray, " genes"] | None = None

    def __post_init__(self) -> None:
        if len(self.space.genes) != len(self.space.mean):
            raise InputError("the evaluation space does not name its genes: give them to Space.fit")

    @classmethod
    def fit(
        cls,
        x_train: Matrix,
        genes: Iterable[str],
        space: Space | None = None,
        modules: Int[np.ndarray, " genes"] | None = None,
        seed: int = 0,
        relative_epsilon: float = 0.5,
        n_variable: int = 200,
    ) -> Yardstick:
        """Measures real training cells.

        Args:
            x_train: log-expression, cells by genes.
            genes: symbols of the columns.
            space: where populations are compared; 50 principal components of ``x_train`` by default.
            modules: the module of each gene, negative for none.
            seed: of the 2,000 cells that distances are measured between, and of the space.
            relative_epsilon: ε over the mean squared distance between training cells.
            n_variable: genes whose correlations are compared.

        Raises:
            InputError: fewer than two training cells, cells that do not differ, modules or a space of other genes.
        """
        genes = tuple(map(str, genes))
        if modules is not None and len(modules) != len(genes):
            raise InputError(f"modules of {len(modules)} genes do not fit cells of {len(genes)} genes")
        space = Space.fit(x_train, seed=seed, genes=genes) if space is None else space.aligned(genes)
        rows = np.arange(x_train.shape[0])
        if len(rows) > _FITTED:
            rows = np.sort(generator(seed, "evaluation yardstick").choice(len(rows), _FITTED, replace=False))
        y = space.project(x_train[rows])
        squared = squared_distances(y, y)[np.triu_indices(len(y), 1)]
        if not len(squared) or not np.median(squared) > 0:
            raise InputError("most real training cells are equal or there is one only: distances have no unit")
        variance = _rough_variance(x_train)
        ranked = np.argsort(-variance, kind="stable")[:n_variable]
        return cls(
            space=space,
            bandwidths=tuple(float(m * np.sqrt(np.median(squared))) for m in sorted(_MULTIPLES, reverse=True)),
            epsilon=float(relative_epsilon * squared.mean()),
            relative_epsilon=relative_epsilon,
            variable=ranked[variance[ranked] > 0],
            modules=modules,
        )

    def places(self, genes: Iterable[str]) -> np.ndarray:
        """Columns of the given genes, ascending; genes that are not measured have none."""
        wanted = set(map(str, genes))
        return np.array([i for i, gene in enumerate(self.space.genes) if gene in wanted], np.int64)

    @cached_property
    def membership(self) -> Float[np.ndarray, "genes modules"] | None:
        """1 where a gene belongs to a module."""
        if self.modules is None:
            return None
        of = np.asarray(self.modules)
        out = np.zeros((len(of), int(of.max(initial=-1)) + 1))
        out[of >= 0, of[of >= 0]] = 1.0
        return out


class _Cells:
    """What depends neither on the genes that count nor on a shift."""

    def __init__(self, x: Matrix, yardstick: Yardstick) -> None:
        self.x = x if isinstance(x, np.ndarray) else sp.csr_array(x)
        self.yardstick = yardstick

    def columns(self, places: np.ndarray) -> np.ndarray:
        part = self.x[:, places]
        return np.asarray(part if isinstance(part, np.ndarray) else part.toarray(), dtype=np.float64)

    @cached_property
    def projection(self) -> np.ndarray:
        return self.yardstick.space.project(self.x)

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance (over n) of every gene, in two passes."""
        n, mean = self.x.shape[0], _mean(self.x)
        variance, step = np.zeros_like(mean), max(1, _VALUES // len(mean))
        for start in range(0, n, step):
            block = self.x[start : start + step]
            away = (block if isinstance(block, np.ndarray) else block.toarray()) - mean
            variance += np.einsum("ij,ij->j", away, away)
        return mean, variance / n

    @cached_property
    def correlation(self) -> np.ndarray:
        return correlations(self.columns(self.yardstick.variable))


class _Own:
    """What a population brings to any comparison; none of it changes when all cells move together."""

    def __init__(self, cells: _Cells, places: np.ndarray) -> None:
        self.cells = cells
        self.places = places

    @cached_property
    def counted(self) -> np.ndarray:
        out = np.ones(self.cells.x.shape[1], bool)
        out[self.places] = False
        return out

    @cached_property
    def projection(self) -> np.ndarray:
        space, full = self.cells.yardstick.space, self.cells.projection
        if not len(self.places):
            return full
        away = self.cells.columns(self.places) - space.mean[self.places]
        return full - away @ space.components[:, self.places].T

    @cached_property
    def variance(self) -> float:
        """Summed over the genes that count, unbiased."""
        n = self.cells.x.shape[0]
        return float(self.cells.moments[1][self.counted].sum()) * n / (n - 1)

    @cached_property
    def within(self) -> tuple[float, float]:
        """Mean distance and mean kernel between different cells."""
        return pair_means(self.projection, None, self.cells.yardstick.bandwidths)

    @cached_property
    def transported(self) -> np.ndarray:
        """Which cells take part in transport."""
        return draw_rows(self.projection, _MOST, "transport")

    @cached_property
    def self_transport(self) -> float:
        y = self.projection[self.transported]
        return self_transport(squared_distances(y, y), self.cells.yardstick.epsilon)

    @cached_property
    def correlation(self) -> np.ndarray:
        kept = self.counted[self.cells.yardstick.variable]
        return self.cells.correlation[np.ix_(kept, kept)]

    @cached_property
    def modules(self) -> np.ndarray:
        membership = self.cells.yardstick.membership * self.counted[:, None]
        # Sums and means of a module's genes correlate alike; a module may have lost its last gene.
        sums = self.cells.x @ membership[:, membership.any(axis=0)]
        return correlations(np.asarray(sums, dtype=np.float64))


class Population:
    """Cells to be compared, real or predicted, with what every comparison needs of them.

    Nothing is computed before it is asked for, and ``shifted`` reuses all of it.
    """

    def __init__(self, x: Matrix, yardstick: Yardstick, without: Iterable[str] = ()) -> None:
        """Takes cells.

        Args:
            x: log-expression, cells by genes, columns as in the yardstick's space.
            yardstick: fitted on real training cells.
            without: genes that do not count.

        Raises:
            InputError: ``x`` has another number of genes.
        """
        genes = len(yardstick.space.mean)
        if x.shape[1] != genes:
            raise InputError(f"cells of {x.shape[1]} genes do not fit a yardstick of {genes} genes")
        self.yardstick = yardstick
        self._own = _Own(_Cells(x, yardstick), yardstick.places(without))
        self._effect: np.ndarray | None = None

    def __len__(self) -> int:
        """How many cells."""
        return self._own.cells.x.shape[0]

    def shifted(self, effect: Float[np.ndarray, " genes"]) -> Population:
        """The same cells, each moved by an effect (log-expression, one value per gene)."""
        moved = copy.copy(self)
        moved._effect = effect.astype(np.float64) + (0.0 if self._effect is None else self._effect)
        return moved

    def without(self, genes: Iterable[str]) -> Population:
        """The same cells with these genes, and no others, not counting; cheaper than to begin anew."""
        other = copy.copy(self)
        other._own = _Own(self._own.cells, self.yardstick.places(genes))
        return other

    @property
    def projection(self) -> Float[np.ndarray, "cells dims"]:
        """Coordinates in the yardstick's space."""
        own = self._own.projection
        if self._effect is None:
            return own
        counted = np.where(self._own.counted, self._effect, 0.0)
        return own + self.yardstick.space.components @ counted

    @property
    def mean(self) -> Float[np.ndarray, " genes"]:
        """Mean log-expression of every gene, also of those that do not count."""
        mean = self._own.cells.moments[0]
        return mean if self._effect is None else mean + self._effect


class Reference:
    """The real cells of a condition, to which any number of populations are compared."""

    def __init__(self, y_real: Matrix, yardstick: Yardstick, without: Iterable[str] = ()) -> None:
        """Takes real cells.

        Args:
            y_real: log-expression, cells by genes, columns as in the yardstick's space.
            yardstick: fitted on real training cells.
            without: genes that do not count.

        Raises:
            InputError: ``y_real`` has another number of genes.
        """
        self.population = Population(y_real, yardstick, without)

    def without(self, genes: Iterable[str]) -> Reference:
        """The same cells with these genes, and no others, not counting; cheaper than to begin anew."""
        other = copy.copy(self)
        other.population = self.population.without(genes)
        return other

    def score(self, x: Matrix | Population) -> dict[str, float]:
        """Compares a population with the real cells. The order of cells plays no part.

        - ``e_distance``: as ``scbig.evaluation.e_distance``.
        - ``mmd``: squared maximum mean discrepancy, unbiased, so it may fall below zero; mean over the Gaussian
          kernels ``exp(−d²/2h²)`` of the yardstick's widths (Gretton et al. 2012, equation 3).
        - ``wasserstein``: of order 1 with Euclidean cost, exact, between equal numbers of cells: of the larger
          population a fixed draw, at most 2,000 of each.
        - ``sinkhorn_divergence``: debiased entropic transport with squared Euclidean cost and the yardstick's ε
          (Feydy et al. 2019), over at most 2,000 cells of each. Few cells in many dimensions lie far from each other:
          by ``wasserstein`` and by this, cells without variance can come closer than other real cells.
        - ``variance_ratio``: predicted over real variance, each summed over genes; a ratio of sums, as ratios of
          single genes have no bound where the real one hardly varies.
        - ``coexpression_error``: Frobenius norm of the difference of the correlation matrices of the
          yardstick's variable genes that count, without their diagonals, over the number of these genes; a
          constant gene correlates with none. What the noise of estimated correlations adds to the squared norm is
          taken off: without that, cells without any correlation come closer than other real cells where
          correlations are weak. So it may fall below zero, as the distances do.
        - ``coexpression_error_modules``: the same between module means, over the number of modules.
        - ``mse_cells``: mean squared difference over genes and all pairs of a predicted and a real cell.

        Args:
            x: cells in the reference's genes, or a population of the same yardstick in which the same genes count.

        Returns:
            One number per metric. All are NaN where either population has fewer than two cells; single ones where
            there is nothing to measure: no real variance, no gene that counts, fewer than two variable genes or
            modules.

        Raises:
            ValueError: a population of another yardstick or of other genes, or with values that are not finite.
        """
        real = self.population
        if not isinstance(x, Population):
            x = Population(x, real.yardstick, np.array(real.yardstick.space.genes, object)[real._own.places])
        if x.yardstick is not real.yardstick or not np.array_equal(x._own.places, real._own.places):
            raise ValueError("the population was made with another yardstick, or other genes count in it")
        if min(len(x), len(real)) < 2:
            return dict.fromkeys(POPULATION_METRICS, float("nan"))
        if not np.isfinite(x.mean).all():
            raise ValueError("the population holds values that are not finite")
        return _between(x, real) | _moments(x, real)


def _between(x: Population, y: Population) -> dict[str, float]:
    """What needs distances between cells."""
    at_x, at_y, yardstick = x.projection, y.projection, y.yardstick
    rows_x, rows_y = x._own.transported, y._own.transported
    squared = squared_distances(at_x[rows_x], at_y[rows_y])
    if squared.shape == (len(x), len(y)):
        distance, kernel = float(np.sqrt(squared).mean()), float(gaussian_kernel(squared, yardstick.bandwidths).mean())
    else:
        distance, kernel = pair_means(at_x, at_y, yardstick.bandwidths)
    (distance_x, kernel_x), (distance_y, kernel_y) = x._own.within, y._own.within
    across = transport(squared, yardstick.epsilon)
    return {
        "e_distance": 2.0 * distance - distance_x - distance_y,
        "mmd": kernel_x + kernel_y - 2.0 * kernel,
        "wasserstein": assigned(squared, at_x[rows_x], at_y[rows_y]),
        "sinkhorn_divergence": across - 0.5 * (x._own.self_transport + y._own.self_transport),
    }


def _moments(x: Population, y: Population) -> dict[str, float]:
    """What needs means, variances and correlations only."""
    counted, real = y._own.counted, y._own.variance
    apart = x._own.cells.moments[1] + y._own.cells.moments[1] + (x.mean - y.mean) ** 2
    modules = y.yardstick.modules is not None
    return {
        "variance_ratio": x._own.variance / real if real > 0 else float("nan"),
        "coexpression_error": _error(x._own.correlation, len(x), y._own.correlation, len(y)),
        "coexpression_error_modules": (
            _error(x._own.modules, len(x), y._own.modules, len(y)) if modules else float("nan")
        ),
        "mse_cells": float(apart[counted].mean()) if counted.any() else float("nan"),
    }


def _error(x: np.ndarray, n_x: int, y: np.ndarray, n_y: int) -> float:
    """Root of the squared difference less what sampling noise adds to it, with the sign of what is left."""
    if len(y) < 2:
        return float("nan")
    left = float(((x - y) ** 2).sum()) - _noise(x, n_x) - _noise(y, n_y)
    return float(np.sign(left) * np.sqrt(abs(left)) / len(y))


def _noise(correlation: np.ndarray, n: int) -> float:
    """Sum of the sampling variances ``(1 − r²)² / (n − 1)`` of correlations; constant genes have none."""
    varies = correlation.any(axis=0)
    each = np.where(varies[:, None] & varies, (1.0 - correlation**2) ** 2, 0.0)
    return float(each.sum() - np.trace(each)) / (n - 1)


def _mean(x: Matrix) -> np.ndarray:
    return group_means(x, np.zeros(x.shape[0], np.int64), 1)[0][0]


def _rough_variance(x: Matrix) -> np.ndarray:
    """Variance over n of every gene, good enough to rank genes, in one pass that leaves sparse cells sparse."""
    total = np.zeros(x.shape[1])
    for start in range(0, x.shape[0], 8192):
        block = x[start : start + 8192].astype(np.float64)
        total += np.asarray((block.power(2) if sp.issparse(block) else block * block).sum(axis=0)).ravel()
    total /= x.shape[0]
    variance = total - _mean(x) ** 2
    return np.where(variance > 1e-12 * total, variance, 0.0)
