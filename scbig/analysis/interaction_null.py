"""Whether a pair departs from the sum of its singles: the null of exact additivity with the measured noise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scbig.analysis.interaction_scores import geometry, kind_of_shape

__all__ = ["POWER", "judge", "own_noise", "tail", "told_apart"]

POWER = 0.8
"""Chance to tell a departure of the size called smallest."""
_FLOOR = 0.05  # on a gene's variance, relative to the mean over genes
_SCORES = ("c1", "c2", "magnitude", "dominance", "slope", "explained", "departure", "relative")


def own_noise(
    x: Float[np.ndarray, "cells genes"], draws: int, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " genes"], Float[np.ndarray, " genes"], Float[np.ndarray, "draws genes"]]:
    """Mean of a group of cells, the variance of that mean, and bootstrap draws of its error.

    Whole cells are drawn, so what genes share within cells is kept. Draws are widened by √(n / (n − 1)).

    Args:
        x: log-expression of the group.
        draws: how many.
        rng: of the draws.
    """
    n = len(x)
    mean = x.mean(axis=0, dtype=np.float64)
    variance = x.var(axis=0, ddof=1, dtype=np.float64) / n
    weight = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float32) / n
    away = (weight @ (x - mean.astype(np.float32))) * np.float32(np.sqrt(n / (n - 1)))
    return mean, variance, away


def tail(value: float, draws: Float[np.ndarray, " draws"]) -> tuple[float, float, float]:
    """Upper tail of a statistic under draws of its null, by a gamma law shifted to their first three moments.

    A sum of squares of correlated normal errors is close to such a law (Pearson's type III), and some hundred draws fix
    it far below the share that counting them could tell.

    Returns:
        The p-value, and the law's mean and standard deviation.
    """
    from scipy.stats import pearson3, skew

    mean, spread = float(draws.mean()), float(draws.std(ddof=1))
    if spread <= 0:
        return (1.0 if value <= mean else 0.0), mean, spread
    # Draws of a sum of squares lean to the right; chance can hide it, and a law leaning left would end too early.
    lean = float(np.clip(skew(draws), 0.1, 3.0))
    return float(pearson3.sf((value - mean) / spread, lean)), mean, spread


def judge(
    effects: Float[np.ndarray, "3 genes"],
    own: Float[np.ndarray, "3 draws genes"],
    control: Float[np.ndarray, "draws genes"],
    variance: Float[np.ndarray, "4 genes"],
) -> dict[str, float | str]:
    """Tests a pair against exact additivity, and gives noise-corrected scores with 95% intervals.

    The statistic is the sum over genes of the squared departure over its noise variance; its null comes from draws of
    the noise. Noise of the controls, which all three effects share, is drawn once for all.

    Args:
        effects: of A, of B and of both, the perturbed genes left out.
        own: draws of the error of the three group means.
        control: draws of the error of the controls' mean.
        variance: of the four means per gene: A, B, both, control.

    Returns:
        ``p``; ``relative_raw``, the relative departure with the noise in it; ``could_tell``, the smallest relative
        departure told with a chance of 80% at p = 0.05, were it spread over genes like the noise; the scores of
        :func:`~scbig.analysis.interaction_scores.geometry`, corrected for noise, each with ``_low`` and ``_high``;
        ``nearest`` and ``nearest_share``, the share of draws with that shape.
    """
    each = variance.sum(axis=0)
    weight = 1.0 / np.maximum(each, _FLOOR * max(float(each.mean()), 1e-30))
    away = effects[2] - effects[0] - effects[1]
    errors = own[2] - own[0] - own[1] + control
    null = np.square(errors, dtype=np.float64) @ weight
    p, mean, spread = tail(float(np.square(away) @ weight), null)
    noise = np.full((3, 3), variance[3].sum()) + np.diag(variance[:3].sum(axis=1))
    gram = effects @ effects.T
    point = geometry(gram - noise)
    drawn = (effects[:, None] + own - control).transpose(1, 0, 2)  # [draws, 3, genes]
    grams = (drawn @ drawn.transpose(0, 2, 1)).astype(np.float64)
    # A draw has the noise of the measurement and its own on top.
    cloud = geometry(grams - 2 * noise)
    found: dict[str, float | str] = {"p": p, "relative_raw": float(geometry(gram)["relative"])}
    for name in _SCORES:
        low, high = np.quantile(cloud[name], [0.025, 0.975]).tolist()
        # Lengths are never negative, and ratios bend: an interval must hold what it is an interval of.
        found |= {name: float(point[name]), f"{name}_low": min(low, float(point[name]))}
        found[f"{name}_high"] = max(high, float(point[name]))
    shape = str(kind_of_shape(point))
    found["nearest"], found["nearest_share"] = shape, float((kind_of_shape(cloud) == shape).mean())
    total = max(float((gram - noise)[:2, :2].sum()), 1e-12)
    found["could_tell"] = told_apart(null, mean, spread, float(each.mean()) / total)
    return found


def told_apart(null: Float[np.ndarray, " draws"], mean: float, spread: float, unit: float) -> float:
    """The smallest relative departure that would be told with a chance of 80% at p = 0.05.

    Args:
        null: draws of the statistic.
        mean: of the null.
        spread: its standard deviation.
        unit: squared relative departure per unit of the statistic.
    """
    from scipy.stats import norm, pearson3, skew

    if spread <= 0:
        return 0.0
    edge = float(pearson3.isf(0.05, float(np.clip(skew(null), 0.1, 3.0)))) * spread
    size, rate = edge, spread * spread / max(2 * mean, 1e-30)
    for _ in range(20):
        size = edge + norm.ppf(POWER) * np.sqrt(spread**2 + 4 * rate * size)
    return float(np.sqrt(size * unit))
