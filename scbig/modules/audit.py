"""Are modules biologically coherent? Interactions within them, enrichment, separation, stability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.errors import InputError
from scbig.modules.module import Modules
from scbig.modules.spherical import normalize
from scbig.rng import generator

__all__ = ["audit", "benjamini_hochberg", "enrichment", "interaction_density", "silhouette", "stability"]

GeneSets = Mapping[str, Sequence[str]]


def audit(
    modules: Modules,
    adjacency: sp.csr_matrix | sp.csr_array | None,
    gene_sets: Mapping[str, GeneSets],
    *,
    vectors: Float[np.ndarray, "genes d"] | None = None,
    mask: Bool[np.ndarray, " genes"] | None = None,
    others: Sequence[Modules] = (),
    seed: int = 0,
    n_permutations: int = 100,
) -> dict:
    """Everything below in one JSON-able dictionary; parts whose input is not given are absent.

    Args:
        modules: to be judged.
        adjacency: interactions in the order of ``modules.genes``, ``[genes, genes]``, symmetric.
        gene_sets: for each collection, for each term its genes (symbols).
        vectors: embeddings in the order of ``modules.genes``, ``[genes, d]``.
        mask: genes with an embedding; all if None.
        others: the same clustering with other seeds.
        seed: of the permutations.
        n_permutations: of the modules' labels.

    Returns:
        ``n_genes``, ``n_modules``, ``sizes``, and ``ppi`` (`interaction_density`), ``enrichment`` by
        collection (`enrichment`), ``silhouette`` (`silhouette`), ``stability`` (`stability`).
    """
    result: dict = {
        "n_genes": len(modules.genes),
        "n_modules": modules.n_modules,
        "sizes": modules.sizes.tolist(),
        "objective": list(modules.history),
    }
    if adjacency is not None:
        result["ppi"] = interaction_density(modules.module, adjacency, seed=seed, n_permutations=n_permutations)
    if gene_sets:
        result["enrichment"] = {name: enrichment(modules, terms) for name, terms in gene_sets.items()}
    if vectors is not None:
        known = np.ones(len(modules.genes), bool) if mask is None else mask
        result["silhouette"] = _number(silhouette(vectors[known], modules.module[known]))
    if others:
        result["stability"] = stability([modules, *others])
    return result


def interaction_density(
    labels: Int[np.ndarray, " genes"],
    adjacency: sp.csr_matrix | sp.csr_array,
    *,
    seed: int = 0,
    n_permutations: int = 100,
) -> dict:
    """Share of the gene pairs within modules that interact, against permuted labels.

    Args:
        labels: module of each gene.
        adjacency: ``[genes, genes]``, symmetric.
        seed: of the permutations.
        n_permutations: at least 2.

    Returns:
        ``density``; the ``expected`` mean and ``sd`` over permutations, ``z``, ``fold`` = density / expected
        and ``p`` = (1 + permutations at least as dense) / (1 + permutations). ``connected`` has the same
        with labels permuted among genes that interact at all, a harder comparison: modules cannot gain by
        gathering genes that the network does not know. Numbers that do not exist are None.

    Raises:
        InputError: if the adjacency does not fit, or for fewer than 2 permutations.
    """
    if adjacency.shape != (len(labels), len(labels)):
        raise InputError(f"adjacency of shape {adjacency.shape} for {len(labels)} genes; align the graph first")
    if n_permutations < 2:
        raise InputError(f"n_permutations={n_permutations}: at least 2 are needed for a spread")
    upper = sp.triu(adjacency, k=1).tocoo()
    edges = np.stack([upper.row, upper.col])[:, upper.data > 0]
    rng = generator(seed, "permuted modules")
    connected = np.unique(edges)
    return {
        "n_edges": int(edges.shape[1]),
        "n_permutations": n_permutations,
        **_density(labels, edges, np.arange(len(labels)), rng, n_permutations),
        "connected": {
            "n_genes": len(connected),
            **_density(labels, edges, connected, rng, n_permutations),
        },
    }


def _density(labels, edges, movable, rng, n_permutations: int) -> dict:
    sizes = np.bincount(labels[movable]).astype(np.float64)
    pairs = float((sizes * (sizes - 1) / 2).sum())
    permuted = labels.copy()

    def inside(values) -> float:
        return float((values[edges[0]] == values[edges[1]]).sum())

    counts = np.empty(n_permutations)
    for i in range(n_permutations):
        permuted[movable] = rng.permutation(labels[movable])
        counts[i] = inside(permuted)
    observed, mean, sd = inside(labels), counts.mean(), counts.std(ddof=1)
    return {
        "density": _number(_ratio(observed, pairs)),
        "expected": _number(_ratio(mean, pairs)),
        "sd": _number(_ratio(sd, pairs)),
        "z": _number(_ratio(observed - mean, sd)),
        "fold": _number(_ratio(observed, mean)),
        "p": float((1 + (counts >= observed).sum()) / (1 + n_permutations)),
    }


def enrichment(
    modules: Modules,
    terms: GeneSets,
    *,
    min_genes: int = 5,
    max_genes: int = 500,
    alpha: float = 0.05,
    n_top: int = 5,
) -> dict:
    """Over-representation of terms in modules: hypergeometric tests with false discovery control.

    Benjamini-Hochberg over all modules × terms. The universe is the genes of the panel that the collection
    annotates at all.

    Args:
        modules: to be judged.
        terms: for each term its genes.
        min_genes: of a term within the universe.
        max_genes: of a term within the universe.
        alpha: false discovery rate.
        n_top: terms listed per module, by p; only those below alpha.

    Returns:
        ``n_universe``, ``n_terms``, ``n_tests``, ``n_significant``, ``n_modules_enriched`` and ``top``, for
        each module a list of ``term``, ``overlap``, ``term_genes``, ``module_genes``, ``fold``, ``p``, ``q``.
    """
    from scipy.stats import hypergeom

    place = {gene: i for i, gene in enumerate(modules.genes)}
    found = {name: sorted({place[gene] for gene in genes if gene in place}) for name, genes in terms.items()}
    universe = np.array(sorted(set().union(*found.values())), np.int64) if found else np.zeros(0, np.int64)
    kept = {name: rows for name, rows in found.items() if min_genes <= len(rows) <= max_genes}
    n_modules, names = modules.n_modules, list(kept)
    in_term = np.array([len(rows) for rows in kept.values()], np.int64)
    in_module = np.bincount(modules.module[universe], minlength=n_modules)
    overlap = np.array([np.bincount(modules.module[rows], minlength=n_modules) for rows in kept.values()])
    overlap = overlap.reshape(len(names), n_modules)
    p = hypergeom.sf(overlap - 1, len(universe), in_term[:, None], in_module[None, :])
    q = benjamini_hochberg(p.ravel()).reshape(p.shape)
    significant = q < alpha
    top = []
    for k in range(n_modules):
        best = [t for t in np.argsort(p[:, k], kind="stable")[:n_top] if significant[t, k]]
        top.append(
            [
                {
                    "term": names[t],
                    "overlap": int(overlap[t, k]),
                    "term_genes": int(in_term[t]),
                    "module_genes": int(in_module[k]),
                    "fold": float(overlap[t, k] * len(universe) / (in_term[t] * in_module[k])),
                    "p": float(p[t, k]),
                    "q": float(q[t, k]),
                }
                for t in best
            ]
        )
    return {
        "n_universe": len(universe),
        "n_terms": len(names),
        "n_tests": int(p.size),
        "n_significant": int(significant.sum()),
        "n_modules_enriched": int(significant.any(axis=0).sum()) if len(names) else 0,
        "top": top,
    }


def benjamini_hochberg(p: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """P-values adjusted so that those below α hold a share α of false ones (Benjamini & Hochberg 1995)."""
    order = np.argsort(p)
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return adjusted


def silhouette(vectors: Float[np.ndarray, "genes d"], labels: Int[np.ndarray, " genes"]) -> float:
    """Mean silhouette with the cosine distance (Rousseeuw 1987); from −1 to 1.

    The mean cosine distance of a gene to a module is linear in the module's mean unit vector, so no distances
    between genes are needed. A gene alone in its module counts 0.

    Args:
        vectors: ``[genes, d]``, none of them zero.
        labels: module of each gene.

    Returns:
        NaN with fewer than two modules.
    """
    _, labels = np.unique(labels, return_inverse=True)
    sizes = np.bincount(labels).astype(np.float64)
    if len(sizes) < 2:
        return float("nan")
    unit = normalize(vectors).astype(np.float64)
    total = np.zeros((len(sizes), unit.shape[1]))
    np.add.at(total, labels, unit)
    rows = np.arange(len(labels))
    mean = 1.0 - (unit @ total.T) / sizes
    own_size = sizes[labels]
    # Its distance to itself is zero, so only the divisor changes from n to n − 1.
    within = mean[rows, labels] * own_size / np.maximum(own_size - 1, 1)
    mean[rows, labels] = np.inf
    nearest = mean.min(axis=1)
    largest = np.maximum(within, nearest)
    score = np.where(own_size > 1, (nearest - within) / np.where(largest > 0, largest, 1.0), 0.0)
    return float(score.mean())


def stability(partitions: Sequence[Modules]) -> dict:
    """Adjusted Rand index of all pairs of partitions of the same genes, matched by name.

    Args:
        partitions: at least two, for instance of different seeds.

    Raises:
        InputError: for fewer than two, or if the genes differ (named).
    """
    from sklearn.metrics import adjusted_rand_score

    if len(partitions) < 2:
        raise InputError("stability needs at least two partitions; cluster with further seeds")
    labels = [each.reorder(partitions[0].genes).module for each in partitions]
    scores = [adjusted_rand_score(labels[i], labels[j]) for i in range(len(labels)) for j in range(i)]
    return {"n": len(labels), "ari_mean": float(np.mean(scores)), "ari_min": float(np.min(scores))}


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
