"""Kernel ridge regression from embeddings to effects."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scbig.baselines.base import Model, TrainingData
from scbig.baselines.smoother import Weigher, choose_from, fit_smoother
from scbig.baselines.sources import Sources, pairwise, unit_sources

__all__ = ["BANDWIDTHS", "RIDGES", "fit"]

BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)
"""Widths tried, as multiples of the median distance between training genes."""
RIDGES = (0.001, 0.03, 0.3, 1.0, 3.0, 10.0)
"""Penalties tried."""


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    ridge: float | int | None = None,
    bandwidth: float | int | None = None,
    folds: int = 5,
    seed: int = 0,
    shrink: bool = True,
) -> Model:
    """Predicts the mean training effect plus ``k (K + λI)⁻¹ (Y − mean)``.

    Every source has a Gaussian kernel of the distance between unit vectors, its width a multiple of the median
    distance between training genes. The kernel of two genes is the sum over the sources that know both, divided
    by the root of the product of the numbers of sources that know each: sources that are missing leave it
    positive semidefinite. A constant is added, so that a level common to all is not penalised apart.

    Args:
        data: training effects; single perturbations are learned from.
        embedding: a source in ``data.embeddings``, several, or None for all.
        ridge: λ; chosen from ``RIDGES`` by cross-validation when None.
        bandwidth: multiple of the median distance; chosen from ``BANDWIDTHS`` when None.
        folds: of the cross-validation inside the training conditions.
        seed: of the folds.
        shrink: scale the deviation from the mean by the least-squares slope found in the same cross-validation.
            The penalty of the best correlation is not that of the best size; an embedding that says nothing
            falls back to the mean.

    Raises:
        InputError: a source that is not there.
    """
    sources = unit_sources(data, embedding, "kernel_ridge")
    widths = BANDWIDTHS if bandwidth is None else (float(bandwidth),)
    ridges = RIDGES if ridge is None else (float(ridge),)
    grid = [(w, r) for w in widths for r in ridges]
    return fit_smoother(
        "kernel_ridge", data, set().union(*sources.values()), f"no vector in {' or '.join(sources)}",
        lambda train, _: _weigher(sources, train), choose_from(grid, _describe), _describe, folds, seed, shrink,
    )  # fmt: skip


def _describe(setting: tuple[float, float]) -> dict:
    return {"bandwidth": setting[0], "ridge": setting[1]}


def _weigher(sources: Sources, train: Sequence[str]) -> Weigher:
    medians = {name: _median(rows, train) for name, rows in sources.items()}
    solved: dict[float, tuple[np.ndarray, np.ndarray]] = {}

    # All settings are asked for the same genes in turn, so the distances of the last two lists are kept.
    kept: dict[tuple[str, ...], tuple[dict[str, np.ndarray], np.ndarray]] = {}

    def distances(genes: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        key = tuple(genes)
        if key not in kept:
            # Unit vectors: the squared distance is 2 − 2 × the inner product.
            square = {name: np.maximum(2 - 2 * pairwise(rows, genes, train), 0) for name, rows in sources.items()}
            here, there = (np.array([sum(g in rows for rows in sources.values()) for g in e]) for e in (genes, train))
            while len(kept) > 1:
                kept.pop(next(iter(kept)))
            kept[key] = square, np.sqrt(np.outer(here, there))
        return kept[key]

    def kernel(genes: Sequence[str], width: float) -> np.ndarray:
        square, size = distances(genes)
        total = sum(np.nan_to_num(np.exp(-d / (2 * (width * medians[name]) ** 2))) for name, d in square.items())
        return total / size + 1.0

    def weigh(genes: Sequence[str], setting: tuple[float, float]) -> np.ndarray:
        width, ridge = setting
        if width not in solved:
            solved[width] = np.linalg.eigh(kernel(train, width))
        value, vector = solved[width]
        return (kernel(genes, width) @ vector) / (np.maximum(value, 0) + ridge) @ vector.T

    return weigh


def _median(rows: dict[str, np.ndarray], train: Sequence[str]) -> float:
    """The median distance between training genes that the source knows; 1 where there is none."""
    inner = pairwise(rows, train, train)[np.triu_indices(len(train), 1)]
    inner = inner[~np.isnan(inner)]
    distance = np.sqrt(np.maximum(2 - 2 * inner, 0))
    return float(np.median(distance)) if len(inner) and np.median(distance) > 0 else 1.0
