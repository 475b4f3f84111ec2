"""The probability path between control and perturbed latents (Lipman et al. 2023, Tong et al. 2024)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

__all__ = ["endpoint", "interpolate", "sample_time"]


def sample_time(
    key: jax.Array, n_conditions: int, n_times: int, kind: str = "uniform"
) -> Float[Array, "conditions times"]:
    """Times in (0, 1): ``uniform``, or ``logit_normal``, which dwells in the middle of the path.

    Stratified twice, so that few times cover the path evenly: of each condition's ``n`` times one falls into every
    n-th of the distribution, and in there each condition has a part of its own.
    """
    if kind not in ("uniform", "logit_normal"):
        raise ValueError(f"no time distribution called {kind!r}: uniform or logit_normal")
    order_key, inner_key = jax.random.split(key)
    parts = jnp.broadcast_to(jnp.arange(n_conditions, dtype=jnp.float32)[:, None], (n_conditions, n_times))
    parts = jax.random.permutation(order_key, parts, axis=0, independent=True)
    inner = (parts + jax.random.uniform(inner_key, parts.shape)) / n_conditions
    # Rounding could reach one, where the logit has no value.
    share = jnp.minimum((jnp.arange(n_times, dtype=jnp.float32)[None, :] + inner) / n_times, 1.0 - 1e-6)
    return share if kind == "uniform" else jax.nn.sigmoid(ndtri(jnp.maximum(share, 1e-6)))


def interpolate(
    z0: Float[Array, "*cells latent"],
    z1: Float[Array, "*cells latent"],
    t: Float[Array, "*#cells 1"],
    noise: Float[Array, "*cells latent"],
    sigma: float,
) -> tuple[Float[Array, "*cells latent"], Float[Array, "*cells latent"]]:
    """A point on the path, ``z_t = (1−t) z0 + t z1 + σ ε``, and the velocity there, ``u = z1 − z0``."""
    return (1.0 - t) * z0 + t * z1 + sigma * noise, z1 - z0


def endpoint(
    z_t: Float[Array, "*cells latent"], t: Float[Array, "*#cells 1"], velocity: Float[Array, "*cells latent"]
) -> Float[Array, "*cells latent"]:
    """Where a straight path with this velocity ends: ``ẑ1 = z_t + (1−t) v``."""
    return z_t + (1.0 - t) * velocity
