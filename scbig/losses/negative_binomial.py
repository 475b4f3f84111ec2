"""Counts as they are sampled: negative binomial around a rate, at the depth of each cell.

A count has mean ``depth × rate`` and variance ``mean + mean² / inverse dispersion``; log-expression is
``log(1 + count / depth)``, as the prepared screen has it. Rates are thus in the units of normalised expression.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

__all__ = ["drawn", "expected_log", "log_likelihood", "thinned", "tilt"]

_FIRST, _LAST, _STEP = -16.0, 3.0, 1.0  # log of the places where the integral of expected_log is summed
_LIMIT = 12.0  # of a log-tilt
_LARGEST = 12.0  # log-rate; far beyond any that is measured, where the integral would be cut off
_ROUNDS = 24


def log_likelihood(
    counts: Float[Array, "cells genes"],
    log_mean: Float[Array, "cells genes"],
    inverse_dispersion: Float[Array, " genes"],
) -> Float[Array, "cells genes"]:
    """Log-probability of every count.

    Args:
        counts: whole numbers.
        log_mean: log of the expected counts.
        inverse_dispersion: of each gene; larger is closer to Poisson.
    """
    theta = inverse_dispersion[None]
    ratio = log_mean - jnp.log(theta)
    # log(1 + mean / theta), without the overflow of a mean that went astray early in training.
    spread = jax.nn.softplus(ratio)
    ways = gammaln(counts + theta) - gammaln(theta) - gammaln(counts + 1.0)
    return ways + counts * (ratio - spread) - theta * spread


def expected_log(
    log_rate: Float[Array, "cells genes"],
    inverse_dispersion: Float[Array, " genes"],
    depth: Float[Array, " cells"],
) -> Float[Array, "cells genes"]:
    """Mean of ``log(1 + count / depth)`` over all counts that a cell of that rate and depth may have.

    With ``log(1 + y) = ∫ exp(-t) (1 - exp(-t y)) dt / t`` it is one integral over the Laplace transform of the negative
    binomial, which is known in closed form; on a logarithmic scale 20 equal steps give it to four digits. No draws, and
    smooth in the rate, so that losses on log-expression have gradients.

    Args:
        log_rate: log of the expected count per unit of depth.
        inverse_dispersion: of each gene.
        depth: of each cell, in units of the sum that counts are scaled to.
    """
    theta, depth = inverse_dispersion[None], depth[:, None]
    share = jnp.exp(jnp.minimum(log_rate, _LARGEST)) * depth / theta
    total = jnp.zeros_like(log_rate)
    for number in range(int((_LAST - _FIRST) / _STEP) + 1):
        place = jnp.exp(jnp.asarray(_FIRST + number * _STEP, jnp.float32))
        missing = -jnp.expm1(-theta * jnp.log1p(share * -jnp.expm1(-place / depth)))
        total = total + _STEP * jnp.exp(-place) * missing
    return total


def drawn(
    rates: Float[np.ndarray, "cells genes"],
    inverse_dispersion: Float[np.ndarray, " genes"],
    depth: Float[np.ndarray, " cells"],
    generators: Sequence[np.random.Generator],
) -> Float[np.ndarray, "cells genes"]:
    """Log-expression of cells whose counts are drawn: Poisson around a gamma around the rate.

    On the host: NumPy draws exactly and many times faster than the rejection loops that XLA makes of it on a CPU.

    Args:
        rates: of every cell and gene, not logarithms.
        inverse_dispersion: of each gene.
        depth: of each cell, in units of the sum that counts are scaled to.
        generators: of each cell, so that its draws do not depend on its company.
    """
    theta = inverse_dispersion.astype(np.float64)
    out = np.empty(rates.shape, np.float32)
    for place, (rate, size, random) in enumerate(zip(rates, depth, generators, strict=True)):
        mean = np.minimum(rate, np.exp(_LARGEST)) * size
        out[place] = random.poisson(random.standard_gamma(theta) * (mean / theta)) / size
    return np.log1p(out)


def thinned(counts: Float[Array, "cells genes"], key: jax.Array) -> Float[Array, "cells genes"]:
    """A random half of every count: binomial with probability ½.

    A rounded normal, which is exact for counts of 0 and 1 and within 0.025 in probability beyond; its mean is exact.
    """
    half = counts / 2.0
    noise = jnp.sqrt(counts) / 2.0 * jax.random.normal(key, counts.shape)
    return jnp.clip(jnp.round(half + noise), 0.0, counts)


@jax.jit
def tilt(
    rates: Float[Array, "cells genes"],
    inverse_dispersion: Float[Array, " genes"],
    depth: Float[Array, " cells"],
    target_mean: Float[Array, " genes"],
) -> Float[Array, " genes"]:
    """Log of the factor of each gene by which rates must be multiplied for a population to have a given mean.

    The mean of the expected log-expression grows with the factor, from zero without bound; Newton steps on its logarithm,
    by halves where they leave the bracket, find the one place where it meets the target.

    Args:
        rates: of every cell and gene, not logarithms.
        inverse_dispersion: of each gene.
        depth: of each cell.
        target_mean: wanted mean log-expression over the cells; where it is zero or below, the factor becomes ``exp(-12)``,
            the smallest there is.

    Returns:
        Log-factors, to be added to log-rates.
    """
    log_rates = jnp.log(jnp.maximum(rates, 1e-12))
    wanted = jnp.log(jnp.maximum(target_mean, 1e-12))

    def mean(tilts):
        return jnp.mean(expected_log(log_rates + tilts[None], inverse_dispersion, depth), axis=0)

    def step(_, held):
        at, low, high = held
        value, slope = jax.jvp(mean, (at,), (jnp.ones_like(at),))
        value = jnp.maximum(value, 1e-12)
        low, high = jnp.where(jnp.log(value) < wanted, at, low), jnp.where(jnp.log(value) < wanted, high, at)
        new = at + (wanted - jnp.log(value)) * value / jnp.maximum(slope, 1e-12)
        return jnp.where((new > low) & (new < high), new, (low + high) / 2.0), low, high

    start = jnp.zeros_like(target_mean)
    return jax.lax.fori_loop(0, _ROUNDS, step, (start, start - _LIMIT, start + _LIMIT))[0]
