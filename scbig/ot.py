"""Optimal transport: Sinkhorn in the log domain or with a kernel, plans and draws from them, the debiased divergence.

The one file that imports ott, and only inside the function that needs it: that import takes seconds.
Everything here can be jitted and vmapped. Hard assignments are in ``scbig.assignment``.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, Int, ScalarLike

__all__ = [
    "Potentials",
    "divergence",
    "match",
    "perplexity",
    "plan",
    "relative_epsilon",
    "sinkhorn",
    "sinkhorn_batch",
    "squared_distances",
]

AnyArray = Array | np.ndarray
_SMALLEST_EPSILON = 1e-6  # of the largest cost: below it float32 potentials carry no information
_KERNEL_RANGE = 100.0  # of cost/ε: centred, the kernel lies in exp(±50), and with its scalings inside float32


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


@partial(jax.jit, static_argnames="iterations")
def sinkhorn_batch(
    cost: Float[AnyArray, "problems n m"], epsilon: Float[AnyArray, " problems"], iterations: int = 100
) -> Potentials:
    """Sinkhorn's iterations for many problems of equal weights at once: products with a kernel where that is safe.

    ``exp(−cost/ε)`` is formed once and the iterations are matrix-vector products, several times faster than the log
    domain. It is safe where no entry can leave float32: the range of the cost after row and column minima are taken
    off, over ε, decides, and one problem beyond the bound sends the whole batch to the log domain.

    Args:
        cost: ``[problems, n, m]``.
        epsilon: regularisation of each problem in the units of its cost.
        iterations: pairs of updates; columns are updated last.

    Returns:
        Potentials with a leading axis of problems, equal to those of `sinkhorn` to rounding.
    """
    cost = jnp.asarray(cost)
    epsilon = jnp.asarray(epsilon, cost.dtype)
    rows = jnp.min(cost, axis=2)
    columns = jnp.min(cost - rows[:, :, None], axis=1)
    rest = (cost - rows[:, :, None] - columns[:, None, :]) / epsilon[:, None, None]
    spread = jnp.max(rest, axis=(1, 2))

    def in_kernel(_):
        kernel = jnp.exp(0.5 * spread[:, None, None] - rest)

        def times(equation, scaling):
            # Full precision: the products are small, and tensor cores would round every scaling to three digits.
            return jnp.einsum(equation, kernel, scaling, precision=jax.lax.Precision.HIGHEST) / scaling.shape[1]

        def update(scalings, _):
            u = 1.0 / times("pnm,pm->pn", scalings[1])
            return (u, 1.0 / times("pnm,pn->pm", u)), None

        # The log domain starts from potentials of zero; here that start is known only up to the minima taken off.
        start = jnp.exp(-columns / epsilon[:, None])
        (u, v), _ = jax.lax.scan(update, (jnp.ones_like(rows), start), length=iterations)
        scale = epsilon[:, None]
        return scale * (jnp.log(u) + 0.5 * spread[:, None]) + rows, scale * jnp.log(v) + columns

    def in_logs(_):
        return tuple(jax.vmap(lambda c, e: sinkhorn(c, e, iterations=iterations))(cost, epsilon))

    return Potentials(*jax.lax.cond(jnp.all(spread < _KERNEL_RANGE), in_kernel, in_logs, None))


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
    # By the inverse of the cumulated row: one random number for a row, where a categorical draw takes one for an entry.
    cumulated = jnp.cumsum(jnp.asarray(plan), axis=1)
    drawn = jax.random.uniform(key, (cumulated.shape[0], 1), cumulated.dtype) * cumulated[:, -1:]
    return jnp.argmax(cumulated > drawn, axis=1).astype(jnp.int32)


def _dual(cost, f, g, epsilon, log_a, log_b):
    """The dual objective; its gradient in the cost at fixed potentials is the plan (envelope theorem)."""
    exponent = (f[:, None] + g[None, :] - cost) / epsilon + log_a[:, None] + log_b[None, :]
    exact = partial(jnp.vdot, precision=jax.lax.Precision.HIGHEST)
    return exact(jnp.exp(log_a), f) + exact(jnp.exp(log_b), g) - epsilon * (jnp.sum(jnp.exp(exponent)) - 1.0)


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
