"""Integration of the flow: fixed-step solvers in one scan, and an adaptive one for reference."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["SOLVERS", "integrate", "integrate_adaptive"]

# Butcher tableaus: (times, rows of the lower triangle, weights).
SOLVERS: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...], tuple[float, ...]]] = {
    "euler": ((0.0,), ((),), (1.0,)),
    "midpoint": ((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "heun": ((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "rk4": ((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}

Velocity = Callable[[Float[Array, "..."], Float[Array, ""]], Float[Array, "..."]]


def integrate(
    velocity: Velocity, z0: Float[Array, "..."], steps: int = 10, solver: str = "heun"
) -> Float[Array, "..."]:
    """Carries latents from t = 0 to t = 1 in equal steps.

    Args:
        velocity: maps ``(z, t)`` with scalar ``t`` to the velocity of every latent.
        z0: where they start, any shape.
        steps: number of equal steps.
        solver: ``euler``, ``midpoint``, ``heun`` or ``rk4`` (1, 2, 2 and 4 evaluations a step).
    """
    times, rows, weights = SOLVERS[solver]
    h = 1.0 / steps

    def step(z, number):
        slopes: list = []
        for time, row in zip(times, rows, strict=True):
            inner = z + h * sum(a * k for a, k in zip(row, slopes, strict=True) if a) if any(row) else z
            slopes.append(velocity(inner, (number + time) * h))
        return z + h * sum(w * k for w, k in zip(weights, slopes, strict=True) if w), None

    return jax.lax.scan(step, z0, jnp.arange(steps, dtype=z0.dtype))[0]


def integrate_adaptive(velocity: Velocity, z0: Float[Array, "..."], tolerance: float = 1e-5) -> Float[Array, "..."]:
    """The same by diffrax's Tsit5 with a PID step controller: slow, the reference for the fixed-step solvers."""
    import diffrax

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, args: velocity(z, t)),
        diffrax.Tsit5(),
        t0=0.0,
        t1=1.0,
        dt0=0.05,
        y0=z0,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=100_000,
    )
    return solution.ys[0]
