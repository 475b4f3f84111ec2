"""An unseen gene does what its nearest neighbours in an embedding do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scbig.baselines.base import Model, TrainingData
from scbig.baselines.smoother import Weigher, choose_from, fit_smoother
from scbig.baselines.sources import Sources, pairwise, unit_sources

__all__ = ["NEIGHBOURS", "SHARPNESS", "fit"]

NEIGHBOURS = (1, 3, 5, 10, 20, 40)
"""Numbers of neighbours tried."""
SHARPNESS = (0.0, 3.0, 10.0)
"""Weights tried: ∝ exp(sharpness × similarity); 0 weighs all neighbours alike."""


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    k: int | None = None,
    sharpness: float | int | None = None,
    folds: int = 5,
    seed: int = 0,
    shrink: bool = False,
) -> Model:
    """Predicts the weighted mean of the training effects of the k most similar genes.

    Similarity is the cosine between vectors, less its mean over pairs of training genes in that source, and the
    mean over the sources that know both genes. (It is not divided by its spread: a source whose similarities
    differ more has more to say.)

    Args:
        data: training effects; single perturbations are learned from.
        embedding: a source in ``data.embeddings``, several, or None for all.
        k: neighbours; chosen from ``NEIGHBOURS`` by cross-validation when None.
        sharpness: of the weights; chosen from ``SHARPNESS`` when None.
        folds: of the cross-validation inside the training conditions.
        seed: of the folds.
        shrink: scale the deviation from the mean training effect by the least-squares slope found in the same
            cross-validation: smaller errors, and an embedding that says nothing falls back to the mean.

    Raises:
        InputError: a source that is not there.
    """
    sources = unit_sources(data, embedding, "knn")
    ks = NEIGHBOURS if k is None else (k,)
    weights = SHARPNESS if sharpness is None else (float(sharpness),)
    grid = [(n, w) for n in ks for w in weights if n > 1 or w == weights[0]]
    return fit_smoother(
        "knn", data, set().union(*sources.values()), f"no vector in {' or '.join(sources)}",
        lambda train, _: _weigher(sources, train), choose_from(grid, _describe), _describe, folds, seed, shrink,
    )  # fmt: skip


def _describe(setting: tuple[int, float]) -> dict:
    return {"k": setting[0], "sharpness": setting[1]}


def _weigher(sources: Sources, train: Sequence[str]) -> Weigher:
    usual = {}
    for name, rows in sources.items():
        among = pairwise(rows, train, train)
        among = among[~np.eye(len(train), dtype=bool)]
        known = ~np.isnan(among)
        usual[name] = among[known].mean() if known.any() else 0.0

    # All settings are asked for the same genes in turn, so the last neighbours are kept.
    last: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def neighbours(genes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if tuple(genes) not in last:
            total, count = np.zeros((len(genes), len(train))), np.zeros((len(genes), len(train)))
            for name, rows in sources.items():
                similarity = pairwise(rows, genes, train) - usual[name]
                both = ~np.isnan(similarity)
                total += np.where(both, similarity, 0.0)
                count += both
            similarity = np.divide(total, count, out=np.full(total.shape, -np.inf), where=count > 0)
            order = np.argsort(-similarity, axis=1, kind="stable")
            last.clear()
            last[tuple(genes)] = order, np.take_along_axis(similarity, order, axis=1)
        return last[tuple(genes)]

    def weigh(genes: Sequence[str], setting: tuple[int, float]) -> np.ndarray:
        k, sharpness = setting
        near, closeness = (each[:, :k] for each in neighbours(genes))
        known, most = np.isfinite(closeness), closeness[:, :1]
        # A gene that shares no source with any training gene has no weights.
        away = np.where(known, closeness, 0.0) - np.where(np.isfinite(most), most, 0.0)
        value = np.where(known, np.exp(sharpness * away), 0.0)
        value = np.where(np.isfinite(most), value, np.nan)
        weights = np.zeros((len(genes), len(train)))
        np.put_along_axis(weights, near, value / value.sum(axis=1, keepdims=True), axis=1)
        return weights

    return weigh
