"""How uncertain a prediction is before anything is calibrated, and whether what is stated of it holds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from scbig.errors import InputError

__all__ = ["Agreement", "agreement", "coverage", "effect_size", "ensemble_spread", "neighbour_error"]

_PRIOR = 0.25  # weight of all other conditions together


def effect_size(effect: Float[np.ndarray, "n genes"]) -> Float[np.ndarray, " n"]:
    """Root mean square of each effect over genes: a measure of difficulty, for large effects are missed by more."""
    return np.sqrt(np.square(effect, dtype=np.float64).mean(axis=1))


def ensemble_spread(effects: Float[np.ndarray, "members n genes"]) -> Float[np.ndarray, " n"]:
    """How far members of an ensemble (seeds, methods) differ: their standard deviation, root mean square over genes.

    Raises:
        InputError: fewer than two members.
    """
    if len(effects) < 2:
        raise InputError("the spread of an ensemble needs at least two members")
    return np.sqrt(np.var(effects, axis=0, ddof=1, dtype=np.float64).mean(axis=1))


def neighbour_error(
    similarity: Float[np.ndarray, "n known"], error: Float[np.ndarray, " known"], neighbours: int = 20
) -> Float[np.ndarray, " n"]:
    """What the errors of similar conditions let expect: their geometric mean, weighted by the squared similarity.

    Where no condition is similar it is the geometric mean of all.

    Args:
        similarity: of each condition to those whose error is known, at most 1; only what is above 0 counts. NaN where it
            is unknown, or where it must not count: of a calibration condition to itself.
        error: size of the out-of-fold error of the known conditions.
        neighbours: how many of the most similar are asked.

    Raises:
        InputError: a condition without any error, or of infinite error.
    """
    if not np.isfinite(error).all() or not (error > 0).all():
        raise InputError("errors of similar conditions must be positive numbers")
    log = np.log(error.astype(np.float64))
    weight = np.square(np.maximum(np.nan_to_num(similarity.astype(np.float64)), 0.0))
    # The rest is left out by weight, so that ties do not hang on the order of conditions.
    if neighbours < weight.shape[1]:
        least = np.partition(weight, -neighbours, axis=1)[:, -neighbours]
        weight = np.where(weight >= least[:, None], weight, 0.0)
    return np.exp((weight @ log + _PRIOR * log.mean()) / (weight.sum(axis=1) + _PRIOR))


def coverage(
    low: Float[np.ndarray, "n columns"],
    high: Float[np.ndarray, "n columns"],
    observed: Float[np.ndarray, "n columns"],
    within: Float[np.ndarray, "n columns"] | None = None,
) -> Float[np.ndarray, " n"]:
    """Share of each condition's entries that lie in their interval; NaN entries do not count.

    Args:
        low: lower ends.
        high: upper ends.
        observed: measured effects.
        within: how far from ``observed`` the true value may lie; it is covered if it is wherever it lies.
    """
    slack = 0.0 if within is None else within
    known = ~np.isnan(observed)
    inside = (observed - slack >= low) & (observed + slack <= high) & known
    count = known.sum(axis=1)
    return np.divide(inside.sum(axis=1), count, out=np.full(len(count), np.nan), where=count > 0)


class Agreement(NamedTuple):
    """Rank correlations (Spearman) of the width of intervals with absolute errors; NaN where either is constant.

    Attributes:
        conditions: of their means over conditions.
        genes: over the entries of a condition, averaged over conditions.
    """

    conditions: float
    genes: float


def agreement(
    low: Float[np.ndarray, "n columns"],
    high: Float[np.ndarray, "n columns"],
    observed: Float[np.ndarray, "n columns"],
) -> Agreement:
    """Whether what is said to be uncertain is wrong by more: the error is that of the middle of the interval."""
    known = ~np.isnan(observed) & np.isfinite(high - low)
    rows = [(high[i, k] - low[i, k], np.abs((high[i, k] + low[i, k]) / 2 - observed[i, k]))
            for i, k in enumerate(known) if k.any()]  # fmt: skip
    inside = [r for r in (_spearman(width, error) for width, error in rows) if not np.isnan(r)]
    means = np.array([(width.mean(), error.mean()) for width, error in rows]).reshape(-1, 2)
    return Agreement(_spearman(means[:, 0], means[:, 1]), float(np.mean(inside)) if inside else np.nan)


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.stats import rankdata

    if len(x) < 3:
        return np.nan
    # Widths that are equal but for rounding are equal.
    x = np.round(x / max(float(np.abs(x).max()), 1e-300), 9)
    x, y = (r - r.mean() for r in (rankdata(x), rankdata(y)))
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else np.nan
