"""Optimal transport: Sinkhorn in the log domain, the debiased divergence, and hard assignments.

The one file that imports ott, and only inside the function that needs it: that import takes seconds.
What takes JAX arrays can be jitted and vmapped; what returns NumPy arrays (`assignment`,
`capacitated_assignment`, `greedy_assignment`) runs on the host.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, ScalarLike

__all__ = [
    "Potentials",
    "assignment",
    "capacitated_assignment",
    "divergence",
    "greedy_assignment",
    "match",
    "perplexity",
    "plan",
    "relative_epsilon",
    "sample_pairs",
    "sinkhorn",
    "squared_distances",
]

AnyArray = Array | np.ndarray
_SMALLEST_EPSILON = 1e-6  # of the largest cost: below it float32 potentials carry no information


class Potentials(NamedTuple):
    """Dual potentials of an entropic problem, in the units of the cost.

    Attributes:
        f: of the rows, ``[n]``.
        g: of the columns, ``[m]``.
    """

    f: Float[Array, " n"]
    g: Float[Array, " m"]


def squared_distances(x: Float[AnyArray, "n d"], y: Float[AnyArray, "m d"]) -> Float[Array, "n m"]:
    """Squared Euclidean distances between the rows of ``x`` and of ``y``, never negative.

    Args:
        x: points, ``[n, d]``.
        y: points, ``[m, d]``.
    """
    x, y = jnp.asarray(x), jnp.asarray(y)
    # Distances do not depend on the origin, but float32 cancellation in |x|² + |y|² − 2xy does.
    origin = jax.lax.stop_gradient(jnp.mean(y, axis=0, keepdims=True))
    x, y = x - origin, y - origin
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum(jnp.sum(x * x, axis=1)[:, None] + jnp.sum(y * y, axis=1)[None, :] - 2 * product, 0.0)


def relative_epsilon(
    cost: Float[AnyArray, "n m"],
    fraction: ScalarLike,
    statistic: str = "median",
) -> Float[Array, ""]:
    """A regularisation strength relative to the cost; no gradient passes through it.

    Args:
        cost: ``[n, m]``.
        fraction: of the statistic.
        statistic: ``median``, ``mean`` or ``std`` of all entries of the cost.

    Returns:
        ``fraction × statistic``, at least a millionth of the largest cost, and positive for a cost of zero.

    Raises:
        ValueError: for another statistic.
    """
    if statistic not in ("median", "mean", "std"):
        raise ValueError(f"no statistic called {statistic!r}: median, mean or std")
    cost = jax.lax.stop_gradient(jnp.asarray(cost))
    smallest = _SMALLEST_EPSILON * jnp.max(jnp.abs(cost)) + jnp.finfo(cost.dtype).tiny
    return jnp.maximum(fraction * getattr(jnp, statistic)(cost), smallest)


def _log_weights(weights, n: int, like):
    if weights is None:
        return jnp.full((n,), -np.log(n), like.dtype)
    return jnp.log(weights)


def _softmin(cost, potential, log_weights, epsilon):
    """Of every row: −ε log Σ_j w_j exp((potential_j − cost_ij)/ε), the update of the other potential."""
    return -epsilon * logsumexp((potential[None, :] - cost) / epsilon + log_weights[None, :], axis=1)


@partial(jax.jit, static_argnames=("iterations", "tolerance"))
def sinkhorn(
    cost: Float[AnyArray, "n m"],
    epsilon: ScalarLike,
    a: Float[AnyArray, " n"] | None = None,
    b: Float[AnyArray, " m"] | None = None,
    iterations: int = 100,
    tolerance: float | None = None,
) -> Potentials:
    """Sinkhorn's iterations in the log domain (Peyré & Cuturi 2019, section 4.4).

    The plan is ``a_i b_j exp((f_i + g_j − cost_ij)/ε)``; columns are updated last, so column sums are exact.

    Args:
        cost: ``[n, m]``.
        epsilon: regularisation in the units of the cost; may be traced.
        a: row weights that add up to one, ``[n]``; zeros allowed; uniform if None.
        b: column weights, ``[m]``, likewise.
        iterations: pairs of updates; with a tolerance, the most.
        tolerance: stop when the row sums of the plan differ from ``a`` by no more than this in total (L1).
            With a tolerance the loop cannot be differentiated in reverse mode.
    """
    cost = jnp.asarray(cost)
    log_a, log_b = _log_weights(a, cost.shape[0], cost), _log_weights(b, cost.shape[1], cost)
    epsilon = jnp.asarray(epsilon, cost.dtype)

    def update(g):
        f = _softmin(cost, g, log_b, epsilon)
        return f, _softmin(cost.T, f, log_a, epsilon)

    start = update(jnp.zeros_like(cost[0]))
    if tolerance is None:
        final, _ = jax.lax.scan(lambda fg, _: (update(fg[1]), None), start, length=iterations - 1)
        return Potentials(*final)

    def more(state):
        count, _, error = state
        return (count < iterations) & (error > tolerance)

    def step(state):
        count, (f, g), _ = state
        following = update(g)
        # The plan of (f, g) has row sums a·exp((f − f')/ε): the error costs nothing extra.
        error = jnp.sum(jnp.exp(log_a) * jnp.abs(jnp.expm1((f - following[0]) / epsilon)))
        return count + 1, following, error

    _, final, _ = jax.lax.while_loop(more, step, (1, start, jnp.asarray(jnp.inf, cost.dtype)))
    return Potentials(*final)


def plan(
    cost: Float[AnyArray, "n m"],
    potentials: Potentials,
    epsilon: ScalarLike,
    a: Float[AnyArray, " n"] | None = None,
    b: Float[AnyArray, " m"] | None = None,
) -> Float[Array, "n m"]:
    """The transport plan of given potentials; its sums are ``a`` and ``b`` where these have converged.

    Args:
        cost: ``[n, m]``.
        potentials: of `sinkhorn` with the same cost, epsilon and weights.
        epsilon: regularisation in the units of the cost.
        a: row weights, ``[n]``; uniform if None.
        b: column weights, ``[m]``; uniform if None.
    """
    cost = jnp.asarray(cost)
    log_a, log_b = _log_weights(a, cost.shape[0], cost), _log_weights(b, cost.shape[1], cost)
    exponent = (potentials.f[:, None] + potentials.g[None, :] - cost) / epsilon
    return jnp.exp(exponent + log_a[:, None] + log_b[None, :])


def perplexity(plan: Float[AnyArray, "n m"]) -> Float[Array, ""]:
    """How many columns a row chooses among, effectively: the mean over rows of exp(entropy).

    1 for a permutation, ``m`` for the independent plan. Rows are normalised first; empty rows are left out.

    Args:
        plan: non-negative, ``[n, m]``.
    """
    plan = jnp.asarray(plan)
    mass = jnp.sum(plan, axis=1, keepdims=True)
    rows = plan / jnp.where(mass > 0, mass, 1.0)
    entropy = -jnp.sum(rows * jnp.log(jnp.where(rows > 0, rows, 1.0)), axis=1)
    held = (mass[:, 0] > 0).astype(plan.dtype)
    return jnp.sum(held * jnp.exp(entropy)) / jnp.sum(held)


def match(key: jax.Array, plan: Float[AnyArray, "n m"]) -> Int[Array, " n"]:
    """Draws for every row one column from the plan's conditional distribution given the row.

    Args:
        key: a JAX key.
        plan: non-negative, ``[n, m]``.
    """
    return jax.random.categorical(key, jnp.log(jnp.asarray(plan)), axis=1).astype(jnp.int32)


def sample_pairs(
    key: jax.Array, plan: Float[AnyArray, "n m"], n_pairs: int
) -> tuple[Int[Array, " pairs"], Int[Array, " pairs"]]:
    """Draws pairs (row, column) from the plan taken as a joint distribution, with replacement.

    Args:
        key: a JAX key.
        plan: non-negative, ``[n, m]``.
        n_pairs: how many.
    """
    plan = jnp.asarray(plan)
    key_row, key_column = jax.random.split(key)
    # A row first, then a column in it: categorical over n·m outcomes would need n_pairs · n · m numbers.
    rows = jax.random.categorical(key_row, jnp.log(jnp.sum(plan, axis=1)), shape=(n_pairs,)).astype(jnp.int32)
    return rows, match(key_column, plan[rows])


def _dual(cost, f, g, epsilon, log_a, log_b):
    """The dual objective; its gradient in the cost at fixed potentials is the plan (envelope theorem)."""
    exponent = (f[:, None] + g[None, :] - cost) / epsilon + log_a[:, None] + log_b[None, :]
    return jnp.exp(log_a) @ f + jnp.exp(log_b) @ g - epsilon * (jnp.sum(jnp.exp(exponent)) - 1.0)


def _symmetric(cost, epsilon, iterations: int):
    """A cloud's potential against itself by averaged updates, which converge fast (Feydy et al. 2019)."""
    log_a = _log_weights(None, cost.shape[0], cost)

    def step(f, _):
        return 0.5 * (f + _softmin(cost, f, log_a, epsilon)), None

    return jax.lax.scan(step, jnp.zeros_like(cost[0]), length=iterations)[0]


@partial(jax.jit, static_argnames=("iterations", "gradient"))
def divergence(
    x: Float[AnyArray, "n p"],
    y: Float[AnyArray, "m p"],
    epsilon_fraction: ScalarLike = 0.05,
    iterations: int = 100,
    gradient: str = "envelope",
) -> Float[Array, ""]:
    """Debiased Sinkhorn divergence OT(x, y) − ½ OT(x, x) − ½ OT(y, y) between two clouds of equal weights.

    Squared Euclidean cost, log domain, one absolute ε for the three terms: a share of the median cost between
    ``x`` and ``y``, through which no gradient passes (Genevay et al. 2018; Feydy et al. 2019).

    Args:
        x: points, ``[n, p]``.
        y: points, ``[m, p]``.
        epsilon_fraction: ε over the median cost.
        iterations: of Sinkhorn in each term (for ``implicit``, the most).
        gradient: ``envelope``: potentials are constants, the gradient is that of ⟨plan, cost⟩ and does not
            pass through the iterations; ``unrolled``: through the iterations; ``implicit``: ott's implicit
            differentiation. The three agree at convergence.

    Raises:
        ValueError: for another gradient.
    """
    if gradient not in ("envelope", "unrolled", "implicit"):
        raise ValueError(f"no gradient called {gradient!r}: envelope, unrolled or implicit")
    x, y = jnp.asarray(x), jnp.asarray(y)
    cost_xy = squared_distances(x, y)
    epsilon = relative_epsilon(cost_xy, epsilon_fraction)
    if gradient == "implicit":
        return _implicit_divergence(x, y, epsilon, iterations)
    hold = jax.lax.stop_gradient if gradient == "envelope" else lambda values: values
    cost_xx, cost_yy = squared_distances(x, x), squared_distances(y, y)
    log_x, log_y = _log_weights(None, x.shape[0], x), _log_weights(None, y.shape[0], y)
    f, g = sinkhorn(hold(cost_xy), epsilon, iterations=iterations)
    f_x = _symmetric(hold(cost_xx), epsilon, iterations)
    f_y = _symmetric(hold(cost_yy), epsilon, iterations)
    across = _dual(cost_xy, f, g, epsilon, log_x, log_y)
    within_x = _dual(cost_xx, f_x, f_x, epsilon, log_x, log_x)
    within_y = _dual(cost_yy, f_y, f_y, epsilon, log_y, log_y)
    return across - 0.5 * (within_x + within_y)


def _implicit_divergence(x, y, epsilon, iterations: int):
    from ott.geometry import pointcloud
    from ott.solvers.linear import implicit_differentiation
    from ott.tools import sinkhorn_divergence

    value, _ = sinkhorn_divergence.sinkhorn_divergence(
        pointcloud.PointCloud,
        x=x,
        y=y,
        epsilon=epsilon,
        solve_kwargs={
            "max_iterations": iterations,
            "threshold": 1e-5,
            "implicit_diff": implicit_differentiation.ImplicitDiff(),
        },
    )
    return value


def assignment(cost: Float[np.ndarray, "n m"]) -> Int[np.ndarray, " n"]:
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


def capacitated_assignment(
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


def greedy_assignment(
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
