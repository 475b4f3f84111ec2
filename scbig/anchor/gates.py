"""How much of what the flow adds to the anchor is kept: as much as proved right on conditions it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist
from scipy.stats import t

__all__ = ["CLOSED", "FEWEST", "Evidence", "Gate", "fit_gates"]

FEWEST = 5
"""Conditions of a kind below which nothing is concluded from them alone."""
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_SURE = 0.95


@dataclass(frozen=True)
class Gate:
    """Shares of the flow's residual that are kept.

    Attributes:
        mean: of the residual's mean over cells; moves the effect.
        shape: of what differs between cells.
        n: conditions that it was fitted on.
    """

    mean: float
    shape: float
    n: int = 0


CLOSED = Gate(0.0, 0.0)
"""Cells exactly where the anchor puts them."""


@dataclass(frozen=True)
class Evidence:
    """One condition that the flow was not trained on; cells in the evaluation space.

    Attributes:
        start: cells where the anchor puts them.
        moved: the same cells where the flow takes them.
        real: measured cells of the condition.
        kind: what was known of the condition.
        trained: whether the flow was trained on other cells of it.
    """

    start: Float[np.ndarray, "cells dims"]
    moved: Float[np.ndarray, "cells dims"]
    real: Float[np.ndarray, "measured dims"]
    kind: str
    trained: bool


def fit_gates(evidence: Sequence[Evidence], kinds: Sequence[str]) -> dict[str, Gate]:
    """A gate for every kind of condition.

    The share of the mean is the lower end of a one-sided 95% interval of the least-squares slope of what the anchor left
    over on what the flow adds (jackknife over conditions), between 0 and 1: zero where the flow has not proved that it
    is right. Only conditions that the flow was not trained on count; without any of the kind it is zero, and so it
    is for measured conditions, whose effect needs no correction.

    The share of the shape is the one among ``0, ¼, ½, ¾, 1`` with the least energy distance to the measured cells, the
    mean left to the anchor, as a mean over conditions; a larger share is taken only for an improvement of which the same
    can be said. Conditions of the kind are asked, then all that the flow was not trained on, then all.

    Args:
        evidence: watched conditions.
        kinds: kinds to give a gate for.
    """
    out = {}
    for kind in kinds:
        own = [e for e in evidence if e.kind == kind and not e.trained]
        mean = _mean_share(own) if len(own) >= FEWEST and kind != "measured" else 0.0
        new = [e for e in evidence if not e.trained]
        asked = own if len(own) >= FEWEST else new if len(new) >= FEWEST else list(evidence)
        out[kind] = Gate(mean, _shape_share(asked) if len(asked) >= FEWEST else 0.0, len(own))
    return out


def _mean_share(evidence: Sequence[Evidence]) -> float:
    pairs = [(e.moved.mean(0) - e.start.mean(0), e.real.mean(0) - e.start.mean(0)) for e in evidence]
    # Conditions weigh the same, whatever the size of what the anchor left over.
    size = np.array([max(float(left @ left), 1e-12) for _, left in pairs])
    product = np.array([float(added @ left) for added, left in pairs]) / size
    square = np.array([float(added @ added) for added, _ in pairs]) / size
    if square.sum() <= 1e-9:
        return 0.0
    n = len(pairs)
    rest = (product.sum() - product) / np.maximum(square.sum() - square, 1e-30)
    error = np.sqrt((n - 1) / n * np.square(rest - rest.mean()).sum())
    return float(np.clip(product.sum() / square.sum() - t.ppf(_SURE, n - 1) * error, 0.0, 1.0))


def _shape_share(evidence: Sequence[Evidence]) -> float:
    distance = np.array([[_distance(e, share) for share in _SHARES] for e in evidence])
    # Conditions weigh the same: a strong effect has larger distances.
    distance = distance / np.maximum(distance[:, :1], 1e-12)
    best = 0
    for i in range(1, len(_SHARES)):
        gain = distance[:, best] - distance[:, i]
        if gain.mean() > t.ppf(_SURE, len(gain) - 1) * gain.std(ddof=1) / np.sqrt(len(gain)):
            best = i
    return _SHARES[best]


def _distance(e: Evidence, share: float) -> float:
    """Energy distance of centred cells, biased form: always positive, the same bias for every share."""
    start, moved, real = (each - each.mean(axis=0) for each in (e.start, e.moved, e.real))
    x = start + share * (moved - start)
    between, inside, real_inside = (_mean_gap(a, b) for a, b in ((x, real), (x, x), (real, real)))
    return 2 * between - inside - real_inside


def _mean_gap(a: np.ndarray, b: np.ndarray) -> float:
    return float(cdist(a, b).mean())


def as_records(gates: Mapping[str, Gate]) -> dict[str, dict[str, float]]:
    """Gates as plain numbers, to be kept with a run."""
    return {kind: {"mean": g.mean, "shape": g.shape, "n": g.n} for kind, g in gates.items()}
