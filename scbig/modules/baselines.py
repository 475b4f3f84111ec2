"""Other ways to make modules, to compare Gene-Relation Clustering with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float

from scbig.errors import InputError
from scbig.modules.clustering import check, cluster, finish
from scbig.modules.module import Modules
from scbig.modules.spherical import centroids, normalize, spherical_kmeans
from scbig.rng import generator

__all__ = ["balanced_kmeans", "kmeans", "random", "soft_top2"]


def balanced_kmeans(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    genes: Sequence[str],
    *,
    n_modules: int,
    seed: int = 0,
) -> Modules:
    """Spherical k-means with modules of equal size: `cluster` without the interaction graph.

    Args:
        vectors: gene embeddings, ``[genes, d]``.
        mask: genes with an embedding; the others fill what room is left.
        genes: unique symbols.
        n_modules: how many modules.
        seed: of the initialisation.

    Raises:
        InputError: as `cluster`.
    """
    return cluster(vectors, mask, None, genes, n_modules=n_modules, w_ppi=0.0, rounding="exact", seed=seed)


def kmeans(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    genes: Sequence[str],
    *,
    n_modules: int,
    seed: int = 0,
) -> Modules:
    """Spherical k-means, modules of any size.

    Args:
        vectors: gene embeddings, ``[genes, d]``.
        mask: genes with an embedding; each of the others joins the module that is smallest when its turn
            comes.
        genes: unique symbols.
        n_modules: how many modules.
        seed: of the initialisation.

    Raises:
        InputError: as `cluster`.
    """
    check(vectors, mask, genes, n_modules)
    order = np.argsort(np.array(genes, dtype=object))
    unit, known = normalize(np.where(mask[:, None], vectors, 0.0)[order]), mask[order]
    labels = np.full(len(genes), -1)
    labels[known] = spherical_kmeans(unit[known], n_modules, generator(seed, "modules"))
    sizes = np.bincount(labels[known], minlength=n_modules)
    for gene in np.flatnonzero(~known):
        labels[gene] = np.argmin(sizes)
        sizes[labels[gene]] += 1
    module = np.empty(len(genes), np.int64)
    module[order] = labels
    return finish(vectors, mask, genes, module)


def random(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    genes: Sequence[str],
    *,
    n_modules: int,
    seed: int = 0,
) -> Modules:
    """Modules of equal size drawn at random; vectors serve only to rank genes within a module.

    Args:
        vectors: gene embeddings, ``[genes, d]``.
        mask: genes with an embedding; may be all False.
        genes: unique symbols.
        n_modules: how many modules.
        seed: of the draw.

    Raises:
        InputError: as `cluster`, except that no embedding is needed.
    """
    check(vectors, np.ones(len(mask), bool), genes, n_modules)
    labels = generator(seed, "random modules").permutation(np.arange(len(genes)) % n_modules)
    module = np.empty(len(genes), np.int64)
    module[np.argsort(np.array(genes, dtype=object))] = labels
    return finish(vectors, mask, genes, module)


def soft_top2(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    genes: Sequence[str],
    *,
    n_modules: int,
    temperature: float = 0.1,
    seed: int = 0,
) -> Modules:
    """Overlapping modules: balanced k-means, and for every gene also the nearest other module.

    Weights are the softmax of the cosine similarity to the two centroids over ``temperature``, in which the
    gene's own module counts at least as much as the other. Genes without an embedding take the next smaller
    module number (circularly) with weight 1 on their own.

    Args:
        vectors: gene embeddings, ``[genes, d]``.
        mask: genes with an embedding.
        genes: unique symbols.
        n_modules: how many modules, at least two.
        temperature: in units of cosine similarity; small values make modules hard.
        seed: of the initialisation.

    Returns:
        Modules with ``extra`` and ``weight``; ``layout(overlapping=True)`` has every gene in both modules.

    Raises:
        InputError: as `cluster`, and for fewer than two modules.
    """
    if n_modules < 2:
        raise InputError(f"soft modules need at least two modules, not {n_modules}")
    if temperature <= 0:
        raise InputError(f"temperature={temperature} must be positive")
    hard = balanced_kmeans(vectors, mask, genes, n_modules=n_modules, seed=seed)
    unit = normalize(np.where(mask[:, None], vectors, 0.0))
    similarity = (unit @ centroids(unit[mask], hard.module[mask], n_modules).T).astype(np.float64)
    rows = np.arange(len(genes))
    own = similarity[rows, hard.module]
    similarity[rows, hard.module] = -np.inf
    extra = np.where(mask, np.argmax(similarity, axis=1), (hard.module - 1) % n_modules)
    gap = np.maximum(own - similarity[rows, extra], 0.0)
    weight = np.where(mask, 1.0 / (1.0 + np.exp(-gap / temperature)), 1.0)
    return replace(hard, extra=extra, weight=weight)
