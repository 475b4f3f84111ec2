"""The probability path between control and perturbed latents (design 4.3; Lipman et al. 2023, Tong et al. 2024)."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float

__all__ = ["endpoint", "interpolate", "sample_time"]


def sample_time(key: jax.Array, shape: tuple[int, ...], kind: str = "uniform") -> Float[Array, "..."]:
    """Times in (0, 1): ``uniform``, or ``logit_normal``, which dwells in the middle of the path."""
    if kind == "uniform":
        return jax.random.uniform(key, shape)
    if kind == "logit_normal":
        return jax.nn.sigmoid(jax.random.normal(key, shape))
    raise ValueError(f"no time distribution called {kind!r}: uniform or logit_normal")


def interpolate(
    z0: Float[Array, "*cells latent"],
    z1: Float[Array, "*cells latent"],
    t: Float[Array, "*cells 1"],
    noise: Float[Array, "*cells latent"],
    sigma: float,
) -> tuple[Float[Array, "*cells latent"], Float[Array, "*cells latent"]]:
    """A point on the path, ``z_t = (1−t) z0 + t z1 + σ ε``, and the velocity there, ``u = z1 − z0``."""
    return (1.0 - t) * z0 + t * z1 + sigma * noise, z1 - z0


def endpoint(
    z_t: Float[Array, "*cells latent"], t: Float[Array, "*cells 1"], velocity: Float[Array, "*cells latent"]
) -> Float[Array, "*cells latent"]:
    """Where a straight path with this velocity ends: ``ẑ1 = z_t + (1−t) v``."""
    return z_t + (1.0 - t) * velocity
