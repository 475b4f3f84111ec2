"""Hard assignments, on the host: one to one, and of genes to modules of given sizes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["capacitated", "greedy", "one_to_one"]

AnyArray = Array | np.ndarray


def one_to_one(cost: Float[np.ndarray, "n m"]) -> Int[np.ndarray, " n"]:
    """The exact assignment: for every row its column, all different, of the least total cost. On the host.

    Args:
        cost: finite, ``[n, m]`` with n ≤ m.

    Raises:
        ValueError: with more rows than columns.
    """
    from scipy.optimize import linear_sum_assignment

    if cost.shape[0] > cost.shape[1]:
        raise ValueError(f"{cost.shape[0]} rows cannot have {cost.shape[1]} different columns")
    return linear_sum_assignment(cost)[1].astype(np.int64)


def capacitated(
    cost: Float[np.ndarray, "genes modules"],
    capacities: Int[np.ndarray, " modules"],
    prices: Float[np.ndarray, " modules"] | None = None,
) -> Int[np.ndarray, " genes"]:
    """The exact partition of the least total cost in which module ``k`` has exactly ``capacities[k]`` genes.

    Every gene first takes its cheapest module at the given prices, which is optimal for the sizes that this
    yields; then one gene after another leaves an overfull module along the shortest path of moves to one
    with room. Paths run over modules, not genes, and reduced costs never become negative (successive shortest
    paths, Ahuja et al. 1993, section 9.7), so the result is optimal whatever the prices; good prices
    (minus Sinkhorn's column potentials) leave few genes to move.

    Args:
        cost: finite, ``[genes, modules]``.
        capacities: non-negative, adding up to the number of genes.
        prices: added to the cost of a module at the start; zero if None.

    Raises:
        ValueError: if capacities do not add up to the number of genes, or the cost is not finite.
    """
    cost = np.asarray(cost, np.float64)
    n_modules = cost.shape[1]
    _check_capacities(cost, capacities)
    prices = np.zeros(n_modules) if prices is None else np.asarray(prices, np.float64).copy()
    labels = np.argmin(cost + prices, axis=1)
    excess = np.bincount(labels, minlength=n_modules) - np.asarray(capacities)
    # best[k, l]: the least extra cost of moving a gene of module k to module l; mover[k, l]: that gene.
    best, mover = np.full((n_modules, n_modules), np.inf), np.full((n_modules, n_modules), -1)

    def refresh(module: int) -> None:
        members = np.flatnonzero(labels == module)
        best[module], mover[module] = np.inf, -1
        if len(members):
            extra = cost[members] - cost[members, module][:, None]
            place = np.argmin(extra, axis=0)
            best[module], mover[module] = extra[place, np.arange(n_modules)], members[place]

    for module in range(n_modules):
        refresh(module)
    while (excess > 0).any():
        reduced = np.maximum(best + prices[None, :] - prices[:, None], 0.0)
        path, distance = _shortest_path(reduced, excess)
        prices -= distance
        moves = [(mover[here, there], there) for here, there in pairwise(path)]
        for gene, there in moves:
            labels[gene] = there
        excess[path[0]] -= 1
        excess[path[-1]] += 1
        for module in path:
            refresh(module)
    return labels.astype(np.int64)


def _check_capacities(cost, capacities) -> None:
    if len(capacities) != cost.shape[1] or np.min(capacities) < 0 or np.sum(capacities) != len(cost):
        raise ValueError(
            f"capacities of {len(capacities)} modules add up to {np.sum(capacities)}; "
            f"{cost.shape[1]} modules must hold {len(cost)} genes"
        )
    if not np.isfinite(cost).all():
        raise ValueError("the cost of an assignment must be finite")


def _shortest_path(weights: np.ndarray, excess: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Dijkstra from all nodes with excess to the nearest that lacks; all distances are cut at its own."""
    distance = np.where(excess > 0, 0.0, np.inf)
    parent = np.full(len(excess), -1)
    open_ = np.ones(len(excess), bool)
    while True:
        here = int(np.argmin(np.where(open_, distance, np.inf)))
        if excess[here] < 0:
            break
        open_[here] = False
        through = distance[here] + weights[here]
        shorter = open_ & (through < distance)
        distance[shorter], parent[shorter] = through[shorter], here
    path = [here]
    while parent[path[-1]] >= 0:
        path.append(int(parent[path[-1]]))
    return path[::-1], np.minimum(distance, distance[here])


def greedy(
    plan: Float[AnyArray, "genes modules"],
    cost: Float[AnyArray, "genes modules"],
    capacities: Int[np.ndarray, " modules"],
) -> Int[np.ndarray, " genes"]:
    """A partition with exact sizes, taking (gene, module) pairs by falling transport while there is room.

    Ties go to the lower cost, then the lower gene, then the lower module. Fast at any size but not optimal.

    Args:
        plan: ``[genes, modules]``.
        cost: finite, ``[genes, modules]``.
        capacities: non-negative, adding up to the number of genes.

    Raises:
        ValueError: if capacities do not add up to the number of genes, or the cost is not finite.
    """
    plan, cost = np.asarray(plan), np.asarray(cost)
    _check_capacities(cost, capacities)
    n_genes, n_modules = cost.shape
    # lexsort is stable, so equal keys keep the order gene, module.
    order = np.lexsort((cost.ravel(), -plan.ravel()))
    labels, room, left = np.full(n_genes, -1), np.asarray(capacities).copy(), n_genes
    block = max(1, len(order) // 64)
    for start in range(0, len(order), block):
        pairs = order[start : start + block]
        genes, modules = np.divmod(pairs, n_modules)
        open_ = (labels[genes] < 0) & (room[modules] > 0)
        for gene, module in zip(genes[open_].tolist(), modules[open_].tolist(), strict=True):
            if labels[gene] < 0 and room[module] > 0:
                labels[gene] = module
                room[module] -= 1
                left -= 1
        if not left:
            break
    return labels.astype(np.int64)
