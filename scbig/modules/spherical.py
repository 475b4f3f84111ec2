"""Spherical k-means: unit vectors, cosine distance, k-means++ seeding."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

__all__ = ["centroids", "normalize", "spherical_kmeans"]


def normalize(vectors: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows d"]:
    """Rows divided by their Euclidean length; rows of zeros stay zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(length > 0, length, 1.0)).astype(np.float32)


def centroids(
    unit: Float[np.ndarray, "rows d"],
    labels: Int[np.ndarray, " rows"],
    n_modules: int,
    previous: Float[np.ndarray, "modules d"] | None = None,
) -> Float[np.ndarray, "modules d"]:
    """Normalised mean of the members of each module.

    Args:
        unit: unit vectors, ``[rows, d]``.
        labels: module of each row.
        n_modules: how many modules.
        previous: centroids that modules without members keep; zeros if None.
    """
    order = np.argsort(labels, kind="stable")
    counts = np.bincount(labels, minlength=n_modules)
    held = counts > 0
    total = np.zeros((n_modules, unit.shape[1]), np.float32)
    if held.any():
        starts = np.concatenate([[0], np.cumsum(counts[held])[:-1]])
        total[held] = np.add.reduceat(unit[order], starts, axis=0)
    result = normalize(total)
    if previous is not None:
        result[~held] = previous[~held]
    return result


def spherical_kmeans(
    unit: Float[np.ndarray, "rows d"],
    n_modules: int,
    rng: np.random.Generator,
    n_init: int = 4,
    max_iterations: int = 50,
) -> Int[np.ndarray, " rows"]:
    """Labels of the best of several runs of Lloyd's algorithm on the sphere (Dhillon & Modha 2001).

    No module stays empty: one that loses its members takes the row that lies farthest from its own centroid.

    Args:
        unit: unit vectors, ``[rows, d]``, at least as many as modules.
        n_modules: how many modules.
        rng: draws the seeds by k-means++ (Arthur & Vassilvitskii 2007).
        n_init: runs.
        max_iterations: of each run.
    """
    best, best_score = np.zeros(len(unit), np.int64), -np.inf
    for _ in range(n_init):
        centers = unit[_seeds(unit, n_modules, rng)]
        labels = np.full(len(unit), -1)
        for _ in range(max_iterations):
            similarity = unit @ centers.T
            updated = _fill_empty(np.argmax(similarity, axis=1), similarity)
            if np.array_equal(updated, labels):
                break
            labels = updated
            centers = centroids(unit, labels, n_modules)
        score = float(np.einsum("ij,ij->", unit, centers[labels], dtype=np.float64))
        if score > best_score:
            best, best_score = labels, score
    return best


def _seeds(unit, n_modules: int, rng: np.random.Generator) -> np.ndarray:
    chosen = [int(rng.integers(len(unit)))]
    nearest = np.full(len(unit), np.inf)
    for _ in range(n_modules - 1):
        # On the sphere 1 − cos is half the squared distance, the weight of k-means++.
        nearest = np.minimum(nearest, np.maximum(1.0 - (unit @ unit[chosen[-1]]).astype(np.float64), 0.0))
        nearest[chosen] = 0.0
        if nearest.sum() > 0:
            chosen.append(int(rng.choice(len(unit), p=nearest / nearest.sum())))
        else:  # fewer different rows than modules
            chosen.append(int(rng.choice(np.setdiff1d(np.arange(len(unit)), chosen))))
    return np.array(chosen)


def _fill_empty(labels, similarity):
    counts = np.bincount(labels, minlength=similarity.shape[1])
    for k in np.flatnonzero(counts == 0):
        own = np.where(counts[labels] > 1, similarity[np.arange(len(labels)), labels], np.inf)
        farthest = int(np.argmin(own))
        counts[labels[farthest]] -= 1
        labels[farthest] = k
        counts[k] = 1
    return labels
