"""Gene-Relation Clustering: balanced modules from gene embeddings and an interaction graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig import assignment, ot
from scbig.errors import InputError, some
from scbig.modules.module import Modules
from scbig.modules.spherical import centroids, normalize, spherical_kmeans
from scbig.rng import generator

__all__ = ["check", "cluster", "finish"]

EXACT_UP_TO = 12_000  # genes; beyond, "auto" rounds greedily
_ITERATIONS = 200  # of Sinkhorn; the exact rounding does not depend on their convergence
_PATIENCE = 3  # rounds without a lower objective before stopping


@dataclass(frozen=True)
class _Problem:
    """What stays fixed while clustering; the genes stand in the order of their names.

    Attributes:
        unit: L2-normalised embeddings, zero where masked.
        mask: genes with an embedding.
        adjacency: interactions, 0 or 1, symmetric, zero diagonal.
        capacities: exact size of each module.
        weights: of the semantic and the interaction term; divided by their spreads once these are known.
    """

    unit: np.ndarray
    mask: np.ndarray
    adjacency: sp.csr_matrix
    capacities: np.ndarray
    weights: tuple[float, float]

    @property
    def n_modules(self) -> int:
        return len(self.capacities)


def cluster(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    adjacency: sp.csr_matrix | sp.csr_array | None,
    genes: Sequence[str],
    *,
    n_modules: int,
    w_sem: float = 1.0,
    w_ppi: float = 1.0,
    standardize: bool = True,
    epsilon: float = 0.05,
    max_rounds: int = 20,
    rounding: str = "auto",
    seed: int = 0,
) -> Modules:
    """Partitions genes into modules of equal size (⌊G/K⌋ or one more) that are alike and interact.

    Starts from spherical k-means; then rounds of: centroids, the cost of every gene in every module (cosine
    distance to the centroid, and one minus the share of the module's other members that it interacts with), a
    Sinkhorn plan with the exact sizes, and a hard partition (paper Eq. 1). Stops when the
    objective, the mean cost of the hard partition under its own centroids and members, has stopped falling;
    the best is kept. The result does not depend on the order in which the genes are given.

    Args:
        vectors: gene embeddings, ``[genes, d]``; rows that are masked are not looked at.
        mask: genes with an embedding. The semantic cost of the others is the same in all modules.
        adjacency: interactions, ``[genes, genes]``, symmetric with a zero diagonal, any positive value is an
            edge; None for none.
        genes: unique symbols.
        n_modules: how many modules.
        w_sem: weight of the semantic cost.
        w_ppi: weight of the interaction cost.
        standardize: divide both costs by their spread over modules at the start; False divides the semantic
            cost by its maximum and leaves the interaction cost as it is, as the authors' code does.
        epsilon: regularisation of the plan, as a share of the cost's spread over modules.
        max_rounds: at the most.
        rounding: ``exact`` (the partition of the least cost), ``greedy`` (by falling transport), or
            ``auto``: exact up to 12,000 genes.
        seed: of the initialisation.

    Raises:
        InputError: for repeated genes, shapes that do not fit, more modules than genes or than genes with an
            embedding, non-finite vectors, or an adjacency that is not symmetric.
    """
    check(vectors, mask, genes, n_modules)
    _check_settings(w_sem, w_ppi, epsilon, max_rounds, rounding)
    # In the order of names, the same draws meet the same genes however the caller sorted them.
    order = np.argsort(np.array(genes, dtype=object))
    graph = _checked_graph(adjacency, genes)[order][:, order]
    unit = normalize(np.where(mask[:, None], vectors, 0.0)[order])
    known = mask[order]
    labels = np.full(len(genes), -1)
    labels[known] = spherical_kmeans(unit[known], n_modules, generator(seed, "modules"))
    problem = _Problem(unit, known, graph, _capacities(labels, n_modules), (w_sem, w_ppi))
    problem = replace(problem, weights=_scaled_weights(problem, labels, standardize))
    exact = rounding == "exact" or (rounding == "auto" and len(genes) <= EXACT_UP_TO)
    best, history = _alternate(problem, labels, epsilon, max_rounds, exact)
    module = np.empty(len(genes), np.int64)
    module[order] = best
    return finish(vectors, mask, genes, module, history=history)


def _check_settings(w_sem: float, w_ppi: float, epsilon: float, max_rounds: int, rounding: str) -> None:
    if rounding not in ("auto", "exact", "greedy"):
        raise InputError(f"no rounding called {rounding!r}: auto, exact or greedy")
    if w_sem < 0 or w_ppi < 0 or w_sem + w_ppi == 0:
        raise InputError(f"weights w_sem={w_sem} and w_ppi={w_ppi}: neither negative, not both zero")
    if epsilon <= 0 or max_rounds < 1:
        raise InputError(f"epsilon={epsilon} must be positive and max_rounds={max_rounds} at least 1")


def _capacities(labels, n_modules: int):
    """⌊G/K⌋ for every module and one more for those that k-means made largest, as far as genes are left."""
    capacities = np.full(n_modules, len(labels) // n_modules)
    started = np.bincount(labels[labels >= 0], minlength=n_modules)
    capacities[np.argsort(-started, kind="stable")[: len(labels) % n_modules]] += 1
    return capacities


def check(vectors: Any, mask: Any, genes: Sequence[str], n_modules: int) -> None:
    """Refuses what no partition can be made of; see `cluster`."""
    n_genes = len(genes)
    if len(vectors) != n_genes or len(mask) != n_genes:
        raise InputError(
            f"{n_genes} genes but {len(vectors)} vectors and {len(mask)} mask entries; align embeddings first"
        )
    if twice := [gene for gene, count in Counter(genes).items() if count > 1]:
        raise InputError(f"genes named more than once: {some(twice)}; make the gene names unique")
    if not 1 <= n_modules <= n_genes:
        raise InputError(f"{n_modules} modules of {n_genes} genes: n_modules must lie between 1 and {n_genes}")
    if mask.sum() < n_modules:
        raise InputError(
            f"{n_modules} modules but only {mask.sum()} genes with an embedding; "
            "give fewer modules or further embeddings"
        )
    finite = np.isfinite(vectors).all(axis=1) | ~mask
    if not finite.all():
        raise InputError(f"embeddings of {some(np.array(genes)[~finite])} are not finite; mask or mend them")


def _checked_graph(adjacency, genes: Sequence[str]) -> sp.csr_matrix:
    n_genes = len(genes)
    if adjacency is None:
        return sp.csr_matrix((n_genes, n_genes), dtype=np.float32)
    if adjacency.shape != (n_genes, n_genes):
        raise InputError(f"adjacency of shape {adjacency.shape} for {n_genes} genes; align the graph first")
    graph = sp.csr_matrix(adjacency > 0, dtype=np.float32)
    if graph.diagonal().any():
        named = some(np.array(genes)[graph.diagonal() > 0])
        raise InputError(f"genes that interact with themselves: {named}; clear the adjacency's diagonal")
    one_way = (graph - graph.T).tocoo()
    one_way.eliminate_zeros()
    if one_way.nnz:
        first = f"{genes[one_way.row[0]]} and {genes[one_way.col[0]]}"
        raise InputError(f"the adjacency is not symmetric, for one between {first}; use the undirected graph")
    return graph


def _costs(problem: _Problem, labels, previous=None):
    """Semantic and interaction cost, each ``[genes, modules]``, and the centroids."""
    n_modules = problem.n_modules
    placed = problem.mask & (labels >= 0)
    mu = centroids(problem.unit[placed], labels[placed], n_modules, previous)
    semantic = 1.0 - problem.unit @ mu.T
    # The same in every module: an unknown gene goes where its partners and the room are.
    semantic[~problem.mask] = semantic[problem.mask].mean()
    return semantic, _interaction_cost(problem.adjacency, labels, n_modules), mu


def _interaction_cost(adjacency: sp.csr_matrix, labels, n_modules: int):
    inside = np.flatnonzero(labels >= 0)
    member = sp.csr_matrix((np.ones(len(inside), np.float32), (inside, labels[inside])), shape=(len(labels), n_modules))
    others = np.broadcast_to(np.bincount(labels[inside], minlength=n_modules), (len(labels), n_modules)).copy()
    others[inside, labels[inside]] -= 1
    return 1.0 - (adjacency @ member).toarray() / np.maximum(others, 1).astype(np.float32)


def _spread(cost) -> float:
    """Root mean square over genes of the deviation over modules: only differences within a row matter."""
    return float(np.sqrt(np.mean(np.var(cost, axis=1, dtype=np.float64)))) if len(cost) else 0.0


def _scaled_weights(problem: _Problem, labels, standardize: bool) -> tuple[float, float]:
    w_sem, w_ppi = problem.weights
    semantic, interaction, _ = _costs(problem, labels)
    if not standardize:
        return w_sem / (float(semantic.max()) + 1e-8), w_ppi
    # Fixed from the start, so that objectives of different rounds compare.
    connected = np.diff(problem.adjacency.indptr) > 0
    spread_sem, spread_ppi = _spread(semantic[problem.mask]), _spread(interaction[connected])
    return w_sem / spread_sem if spread_sem > 0 else 0.0, w_ppi / spread_ppi if spread_ppi > 0 else 0.0


def _alternate(problem: _Problem, labels, epsilon: float, max_rounds: int, exact: bool):
    w_sem, w_ppi = problem.weights
    rows = np.arange(len(labels))
    history: list[float] = []
    best, best_at = labels, -1
    semantic, interaction, mu = _costs(problem, labels)
    for number in range(max_rounds):
        cost = w_sem * semantic + w_ppi * interaction
        labels = _round(cost, problem.capacities, epsilon * _spread(cost), exact)
        semantic, interaction, mu = _costs(problem, labels, mu)
        hard = w_sem * semantic[rows, labels] + w_ppi * interaction[rows, labels]
        history.append(float(np.mean(hard, dtype=np.float64)))
        if best_at < 0 or history[-1] < history[best_at] - 1e-7 * abs(history[best_at]):
            best, best_at = labels, number
        elif number - best_at >= _PATIENCE:
            break
    return best, tuple(history)


def _round(cost, capacities, epsilon: float, exact: bool):
    """Hard labels with exactly the given sizes, by the entropic plan of the cost."""
    if len(capacities) == 1:
        return np.zeros(len(cost), np.int64)
    share = (capacities / capacities.sum()).astype(np.float32)
    cost = cost.astype(np.float32)
    epsilon = np.float32(max(epsilon, 1e-6))
    potentials = ot.sinkhorn(cost, epsilon, b=share, iterations=_ITERATIONS)
    if exact:
        return assignment.capacitated(cost, capacities, prices=-np.asarray(potentials.g))
    return assignment.greedy(ot.plan(cost, potentials, epsilon, b=share), cost, capacities)


def finish(
    vectors: Float[np.ndarray, "genes d"],
    mask: Bool[np.ndarray, " genes"],
    genes: Sequence[str],
    module: Int[np.ndarray, " genes"],
    *,
    history: tuple[float, ...] = (),
) -> Modules:
    """Orders modules so that neighbours are similar, and genes within a module by distance to its centroid.

    Args:
        vectors: gene embeddings, ``[genes, d]``.
        mask: genes with an embedding.
        genes: unique symbols.
        module: any labels ``0 … K−1``, none of them empty.
        history: kept with the result.
    """
    n_modules = int(module.max()) + 1
    unit = normalize(np.where(mask[:, None], vectors, 0.0))
    mu = centroids(unit[mask], module[mask], n_modules)
    position = np.empty(n_modules, np.int64)
    position[_similar_next(mu)] = np.arange(n_modules)
    distance = 1.0 - np.einsum("ij,ij->i", unit, mu[module])
    distance = np.where(mask, np.maximum(distance, 0.0), np.nan).astype(np.float64)
    module = position[module]
    rank = np.empty(len(module), np.int64)
    # Genes without an embedding come last; NaN sorts to the end. Names break ties.
    names = np.argsort(np.argsort(np.array(genes, dtype=object)))
    for k in range(n_modules):
        inside = np.flatnonzero(module == k)
        rank[inside[np.lexsort((names[inside], distance[inside]))]] = np.arange(len(inside))
    return Modules(tuple(genes), module, rank, distance, history)


def _similar_next(mu) -> np.ndarray:
    """Leaves of the tree of centroids, flipped so that neighbours are close (Bar-Joseph et al. 2001)."""
    from scipy.cluster.hierarchy import leaves_list, linkage

    if len(mu) < 3:
        return np.arange(len(mu))
    return leaves_list(linkage(mu.astype(np.float64), "average", optimal_ordering=True))
