"""Metrics on mean profiles, one number per condition, all conditions at once.

Everywhere ``predicted`` and ``observed`` hold one row per condition, and ``keep`` says which genes count in
each row (the perturbed genes of the condition do not). Sums are in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

__all__ = [
    "METRICS",
    "Metric",
    "centroid_acc",
    "chance_pds",
    "cosine",
    "direction_acc",
    "distances",
    "l2",
    "mae",
    "mse",
    "pds",
    "pearson",
    "r2",
    "ranks",
    "top",
]

Rows = Float[np.ndarray, "conditions genes"]
Keep = Bool[np.ndarray, "conditions genes"]
Values = Float[np.ndarray, " conditions"]

_FLAT = 1e-20  # relative variance below which a profile counts as constant: rounding of float64 sums


@dataclass(frozen=True)
class Metric:
    """What a metric means.

    Attributes:
        best: the value of a perfect prediction.
        higher: whether larger is better.
        text: one sentence for the report.
        cells: whether it needs cells, not only effects.
    """

    best: float
    higher: bool
    text: str
    cells: bool = False


METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(1.0, True, "Pearson correlation of predicted and observed effect over genes."),
    "pearson_delta_top20": Metric(1.0, True, "The same over the 20 genes of largest observed effect."),
    "pearson_delta_ref_perturbed": Metric(
        1.0, True, "The same with effects taken to the mean of the training perturbations, not to control."
    ),
    "direction_acc": Metric(1.0, True, "Share of genes whose effect has the observed sign."),
    "direction_acc_top20": Metric(1.0, True, "The same over the 20 genes of largest observed effect."),
    "r2_delta": Metric(1.0, True, "Share of the effect's variance over genes that is explained."),
    "cosine_delta": Metric(1.0, True, "Cosine between predicted and observed effect."),
    "l2": Metric(0.0, False, "Euclidean distance between predicted and observed mean profile."),
    "mse": Metric(0.0, False, "Mean squared error of the mean profile."),
    "mae": Metric(0.0, False, "Mean absolute error of the mean profile."),
    "pds_l1": Metric(
        1.0, True, "Rank of the true condition among all test conditions by L1 distance to the prediction."
    ),
    "pds_l2": Metric(1.0, True, "The same by Euclidean distance."),
    "pds_cosine": Metric(1.0, True, "The same by cosine distance."),
    "centroid_acc": Metric(
        1.0, True, "Share of other perturbations, training ones too, that lie farther than the true one."
    ),
    "e_distance": Metric(
        0.0, False, "Energy distance to the real cells in a fixed PCA of real training cells.", cells=True
    ),
    "e_distance_share": Metric(
        0.0,
        False,
        "That distance as a share of the control cells' own; averages are ratios of means.",
        cells=True,
    ),
}
"""Metrics by name, in the order of tables."""


def _masked(x: Rows, keep: Keep) -> np.ndarray:
    return np.where(keep, x, 0.0).astype(np.float64)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, fill: float) -> np.ndarray:
    out = np.full(numerator.shape, fill)
    return np.divide(numerator, denominator, out=out, where=denominator > 0)


def pearson(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Pearson correlation over genes.

    Returns:
        One value per condition: 0 where the prediction is constant (it says nothing, and must not vanish
        from an average); NaN where the observation is constant.
    """
    n = keep.sum(axis=1)
    x, y = _masked(predicted, keep), _masked(observed, keep)
    size_x, size_y = (x * x).sum(axis=1), (y * y).sum(axis=1)
    x -= np.where(keep, _ratio(x.sum(axis=1), n, 0.0)[:, None], 0.0)
    y -= np.where(keep, _ratio(y.sum(axis=1), n, 0.0)[:, None], 0.0)
    ss_x, ss_y = (x * x).sum(axis=1), (y * y).sum(axis=1)
    ss_x, ss_y = np.where(ss_x > _FLAT * size_x, ss_x, 0.0), np.where(ss_y > _FLAT * size_y, ss_y, 0.0)
    r = _ratio((x * y).sum(axis=1), np.sqrt(ss_x) * np.sqrt(ss_y), 0.0)
    return np.where(ss_y > 0, np.clip(r, -1.0, 1.0), np.nan)


def top(observed: Rows, keep: Keep, n: int = 20) -> Keep:
    """The ``n`` counted genes of largest absolute observed effect in each row; all where there are fewer."""
    size = np.where(keep, np.abs(observed).astype(np.float64), -1.0)
    first = np.argsort(-size, axis=1, kind="stable")[:, :n]
    chosen = np.zeros_like(keep)
    np.put_along_axis(chosen, first, True, axis=1)
    return chosen & keep


def direction_acc(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Share of genes whose predicted effect has the observed sign.

    Genes with an observed effect of exactly zero have no direction and do not count; a predicted zero is
    wrong.
    """
    counted = keep & (observed != 0)
    right = counted & (np.sign(predicted) == np.sign(observed))
    return _ratio(right.sum(axis=1).astype(np.float64), counted.sum(axis=1), np.nan)


def l2(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Euclidean distance."""
    return np.sqrt((_masked(predicted - observed, keep) ** 2).sum(axis=1))


def mse(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Mean squared error over genes."""
    return _ratio((_masked(predicted - observed, keep) ** 2).sum(axis=1), keep.sum(axis=1), np.nan)


def mae(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Mean absolute error over genes."""
    return _ratio(np.abs(_masked(predicted - observed, keep)).sum(axis=1), keep.sum(axis=1), np.nan)


def r2(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """``1 − SS(residual) / SS(observed about its mean over genes)``; NaN for a constant observation."""
    y = _masked(observed, keep)
    size = (y * y).sum(axis=1)
    y -= np.where(keep, _ratio(y.sum(axis=1), keep.sum(axis=1), 0.0)[:, None], 0.0)
    total = (y * y).sum(axis=1)
    total = np.where(total > _FLAT * size, total, 0.0)
    return 1.0 - _ratio((_masked(predicted - observed, keep) ** 2).sum(axis=1), total, np.nan)


def cosine(predicted: Rows, observed: Rows, keep: Keep) -> Values:
    """Cosine similarity; 0 where the prediction is zero, NaN where the observation is."""
    x, y = _masked(predicted, keep), _masked(observed, keep)
    norm_x, norm_y = np.linalg.norm(x, axis=1), np.linalg.norm(y, axis=1)
    return np.where(norm_y > 0, _ratio((x * y).sum(axis=1), norm_x * norm_y, 0.0), np.nan)


def distances(
    predicted: Rows, candidates: Float[np.ndarray, "candidates genes"], keep: Keep, kind: str
) -> Float[np.ndarray, "conditions candidates"]:
    """Distances of every prediction to every candidate, over the genes that count for the prediction.

    Args:
        predicted: one row per prediction.
        candidates: one row per candidate.
        keep: genes that count, by prediction.
        kind: ``l1``, ``l2`` (Euclidean) or ``cosine`` (1 − cosine; 1 where either is zero).
    """
    x, c, k = _masked(predicted, keep), candidates.astype(np.float64), keep.astype(np.float64)
    if kind == "l1":
        # Row by row: the whole difference cube would be conditions × candidates × genes.
        return np.stack([np.abs(c - row) @ mask for row, mask in zip(x, k, strict=True)])
    dot, own, other = x @ c.T, (x * x).sum(axis=1)[:, None], k @ (c * c).T
    if kind == "l2":
        return np.sqrt(np.maximum(own - 2.0 * dot + other, 0.0))
    if kind == "cosine":
        return 1.0 - _ratio(dot, np.sqrt(own) * np.sqrt(other), 0.0)
    raise ValueError(f"unknown distance {kind}")


def ranks(distance: Float[np.ndarray, "conditions candidates"], seed: int = 0) -> Values:
    """How many candidates lie closer than the true one, whose number is that of the prediction.

    Ties are broken at random: the true one takes any place among those at its distance with equal chance.
    """
    own = np.arange(len(distance))
    true = distance[own, own][:, None]
    tolerance = 1e-12 * np.maximum(np.abs(true), 1e-12)
    closer = (distance < true - tolerance).sum(axis=1)
    tied = (np.abs(distance - true) <= tolerance).sum(axis=1)
    return (closer + np.random.default_rng(seed).integers(0, tied)).astype(np.float64)


def chance_pds(n: int) -> float:
    """What ``pds`` expects of a prediction that does not tell conditions apart: ``0.5 + 1/(2n)``."""
    return 0.5 + 0.5 / n


def pds(predicted: Rows, observed: Rows, keep: Keep, kind: str, seed: int = 0) -> Values:
    """Perturbation discrimination score ``1 − rank / n`` among the n observed effects.

    As in cell-eval, except that ties are broken at random. With ``keep`` leaving out each row's own perturbed gene
    this is cell-eval's number. ``evaluate`` leaves out what any condition perturbs: with its own perturbed genes gone
    and those of the others in place, the true condition stands out even for a constant prediction.
    """
    return 1.0 - ranks(distances(predicted, observed, keep, kind), seed) / len(observed)


def centroid_acc(predicted: Rows, centroids: Float[np.ndarray, "candidates genes"], keep: Keep) -> Values:
    """Share of the other centroids strictly farther from the prediction than the true one (Systema 2025).

    Args:
        predicted: one row per prediction.
        centroids: observed profiles, the first rows those of the predictions in order, then any others.
        keep: genes that count.

    Returns:
        One value per condition; NaN where there is no other centroid.
    """
    distance = distances(predicted, centroids, keep, "l2")
    own = np.arange(len(predicted))
    true = distance[own, own][:, None]
    farther = (distance > true * (1.0 + 1e-12)).sum(axis=1).astype(np.float64)
    return farther / (len(centroids) - 1) if len(centroids) > 1 else np.full(len(predicted), np.nan)
