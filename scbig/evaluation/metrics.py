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
        best: the value of a perfect prediction; NaN for a count, which has none.
        kind: ``higher`` or ``lower`` is better; ``target``: the nearer to ``best`` the better; ``count``: a number to
            read beside others.
        text: one sentence for the report.
        cells: whether it needs cells, not only effects.
        halves: how a score between two halves of the real cells extends to all of them: ``correlation`` by
            Spearman-Brown; ``square`` and ``root`` as the noise of a mean falls with the number of cells, for squared
            errors and for their roots; ``matched`` does not extend, so that methods are compared with half of the
            cells, too.
    """

    best: float
    kind: str
    text: str
    cells: bool = False
    halves: str = "matched"

    @property
    def higher(self) -> bool:
        """Whether larger is better."""
        return self.kind == "higher"

    def badness(self, value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """How far values are from good, on a scale on which smaller is better."""
        if self.kind == "target":
            # Twice too much is as bad as half of it.
            return np.abs(np.log(np.maximum(value / self.best, 1e-6)))
        return -value if self.higher else value


METRICS: dict[str, Metric] = {
    "pearson_delta": Metric(
        1.0, "higher", "Pearson correlation of predicted and observed effect over genes.", halves="correlation"
    ),
    "pearson_delta_top20": Metric(
        1.0, "higher", "The same over the 20 genes of largest observed effect.", halves="correlation"
    ),
    "pearson_delta_ref_perturbed": Metric(
        1.0,
        "higher",
        "The same with effects taken to the mean of the training perturbations, not to control.",
        halves="correlation",
    ),
    "pearson_delta_recorded": Metric(
        1.0,
        "higher",
        "The same as the first over the entries that a censored table of effects records.",
        halves="correlation",
    ),
    "direction_acc": Metric(1.0, "higher", "Share of genes whose effect has the observed sign."),
    "direction_acc_top20": Metric(1.0, "higher", "The same over the 20 genes of largest observed effect."),
    "des": Metric(
        1.0,
        "higher",
        "Spearman correlation of log fold changes over the genes that respond (rank-sum test, FDR below 0.05).",
        cells=True,
        halves="correlation",
    ),
    "de_overlap_n": Metric(
        1.0,
        "higher",
        "Share of the N genes that respond found among the N most changed of those predicted to respond.",
        cells=True,
    ),
    "de_precision": Metric(
        1.0, "higher", "Share of the N most changed genes predicted to respond that do respond.", cells=True
    ),
    "de_recall": Metric(
        1.0,
        "higher",
        "Share of the genes that respond which are predicted to. Predicting that all respond gives 1: read it beside "
        "precision and n_de.",
        cells=True,
    ),
    "de_direction_match": Metric(
        1.0, "higher", "Share of the genes that respond whose predicted change has the observed sign.", cells=True
    ),
    "roc_auc": Metric(
        1.0, "higher", "Area under the ROC curve of predicted significance for the genes that respond.", cells=True
    ),
    "pr_auc": Metric(1.0, "higher", "Area under the precision-recall curve of the same.", cells=True),
    "n_de": Metric(np.nan, "count", "Genes predicted to respond; n_de_observed of them do.", cells=True),
    "n_de_observed": Metric(np.nan, "count", "Genes that respond in the real cells.", cells=True),
    "deg_macro_f1": Metric(
        1.0,
        "higher",
        "Genes called up, down or unchanged (t-test by batch, FDR below 0.05, majority of batches): mean F1 of the "
        "classes.",
        cells=True,
    ),
    "pds_l1": Metric(
        1.0, "higher", "Rank of the true condition among all test conditions by L1 distance to the prediction."
    ),
    "pds_l2": Metric(1.0, "higher", "The same by Euclidean distance."),
    "pds_cosine": Metric(1.0, "higher", "The same by cosine distance."),
    "centroid_acc": Metric(
        1.0, "higher", "Share of other perturbations, training ones too, that lie farther than the true one."
    ),
    "r2_delta": Metric(1.0, "higher", "Share of the effect's variance over genes that is explained."),
    "cosine_delta": Metric(1.0, "higher", "Cosine between predicted and observed effect.", halves="correlation"),
    "l2": Metric(0.0, "lower", "Euclidean distance between predicted and observed mean profile.", halves="root"),
    "mse": Metric(0.0, "lower", "Mean squared error of the mean profile.", halves="square"),
    "mae": Metric(0.0, "lower", "Mean absolute error of the mean profile.", halves="root"),
    "wmse": Metric(
        0.0,
        "lower",
        "Squared error of the mean profile, genes weighted by how surely they respond.",
        cells=True,
        halves="square",
    ),
    "l2_ba_ate": Metric(
        0.0,
        "lower",
        "Euclidean error of the batch-aware average treatment effect: every batch weighs the same and has its own "
        "controls.",
        cells=True,
        halves="root",
    ),
    "l2_ba_ate_global": Metric(0.0, "lower", "The same with the controls of all batches.", cells=True, halves="root"),
    "e_distance": Metric(
        0.0, "lower", "Energy distance to the real cells in a fixed PCA of real training cells.", cells=True
    ),
    "e_distance_share": Metric(
        0.0, "lower", "That distance as a share of the control cells' own; averages are ratios of means.", cells=True
    ),
    "mmd": Metric(
        0.0, "lower", "Maximum mean discrepancy, squared and unbiased, Gaussian kernels of fixed widths.", cells=True
    ),
    "wasserstein": Metric(0.0, "lower", "Wasserstein distance of order 1 in the same PCA, exact.", cells=True),
    "sinkhorn_divergence": Metric(
        0.0, "lower", "Debiased entropic transport cost (squared distance) in the same PCA.", cells=True
    ),
    "mse_cells": Metric(
        0.0,
        "lower",
        "Mean squared difference of a predicted and a real cell. Cells without any noise score best: no measure of "
        "populations.",
        cells=True,
    ),
    "variance_ratio": Metric(1.0, "target", "Predicted over real variance, summed over genes.", cells=True),
    "coexpression_error": Metric(
        0.0, "lower", "Difference of gene correlations over the most variable genes, per gene.", cells=True
    ),
    "coexpression_error_modules": Metric(0.0, "lower", "The same between means of gene modules.", cells=True),
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
    if kind == "l1" and len(keep) and (keep == keep[0]).all():
        from scipy.spatial.distance import cdist

        # The same genes for all, as rankings have it: they can be cut out, and cdist is compiled.
        return cdist(x[:, keep[0]], c[:, keep[0]], "cityblock")
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
