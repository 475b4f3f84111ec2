"""Metrics on mean profiles: from predicted and observed profiles to one number per condition and metric."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scbig.evaluation import metrics as m
from scbig.evaluation.truth import Exclusions, Truth

__all__ = ["FEWEST_RANKED", "WITH_TARGETS", "profile_metrics", "report_undefined"]

WITH_TARGETS = "_with_targets"
"""Suffix of a metric that counts the perturbed genes too."""

FEWEST_RANKED = 20  # genes


def profile_metrics(
    mean: Float[np.ndarray, "conditions genes"], real: Truth, seed: int = 0
) -> dict[str, Float[np.ndarray, " conditions"]]:
    """Every metric on mean profiles, without and (``_with_targets``) with the perturbed genes.

    Args:
        mean: predicted mean log-expression of the test conditions, NaN throughout where there is none.
        real: the real side.
        seed: for ties in rankings.

    Returns:
        Values by metric; NaN where there is no prediction or the metric is not defined.
    """
    out = {}
    answered = ~np.isnan(mean).any(axis=1)
    filled = np.where(answered[:, None], mean, 0.0)
    # Censored entries lie somewhere within the threshold: inside it nothing is wrong, beyond it the excess is.
    error = _interval_error(filled, real)
    for suffix, keep in (("", real.keep), (WITH_TARGETS, np.ones_like(real.keep))):
        x, y = filled - real.control, real.delta
        best = m.top(y, keep)
        reference = np.nan_to_num(real.reference)
        values = {
            "pearson_delta": m.pearson(x, y, keep),
            "pearson_delta_top20": m.pearson(x, y, best),
            "pearson_delta_ref_perturbed": _to_reference(filled - reference, real.mean - reference, keep),
            "direction_acc": m.direction_acc(x, y, keep),
            "direction_acc_top20": m.direction_acc(x, y, best),
            "r2_delta": m.r2(x, y, keep),
            "cosine_delta": m.cosine(x, y, keep),
            "l2": m.l2(error, np.zeros_like(error), keep),
            "mse": m.mse(error, np.zeros_like(error), keep),
            "mae": m.mae(error, np.zeros_like(error), keep),
        }
        if real.recorded is not None:
            values["pearson_delta_recorded"] = m.pearson(x, y, keep & real.recorded)
        if real.ate is not None:
            values["l2_ba_ate"] = m.l2(x, real.ate, keep & ~np.isnan(real.ate))
            values["l2_ba_ate_global"] = m.l2(x, real.ate_global, keep & ~np.isnan(real.ate_global))
            values["l2_ba_ate"][np.isnan(real.ate).all(axis=1)] = np.nan
        unknown = np.isnan(real.reference).any(axis=1)
        values["pearson_delta_ref_perturbed"][unknown] = np.nan
        # Rankings leave out what any condition perturbs: without its own perturbed genes alone, the true condition
        # would be told apart from the others, which keep theirs, by a prediction that says nothing.
        ranked = keep if suffix else np.broadcast_to(real.unperturbed, keep.shape)
        if ranked[0].sum() >= FEWEST_RANKED:
            values |= _rank_metrics(filled, real, ranked, seed)
        out |= {f"{k}{suffix}": np.where(answered, v, np.nan) for k, v in values.items()}
    return out


def report_undefined(real: Truth, excluded: Exclusions) -> None:
    """Which of these metrics the data does not define, and why; the same for every method."""
    n = int(real.unperturbed.sum())
    if n < FEWEST_RANKED:
        excluded.add("", f"only {n} genes are not perturbed", metric="pds")
    for context in sorted(set(real.keys["context"][np.isnan(real.reference).any(axis=1)])):
        reason = "no training perturbation in this context to take as reference"
        excluded.add("", reason, "", context, "pearson_delta_ref_perturbed")
    flat = np.isnan(m.pearson(real.delta, real.delta, real.keep))
    for condition, context in real.keys.loc[flat, ["condition", "context"]].itertuples(index=False):
        excluded.add("", "the observed effect is the same for every gene", condition, context, "pearson_delta")


def _interval_error(mean: np.ndarray, real: Truth) -> np.ndarray:
    error = mean - real.mean
    if real.recorded is None:
        return error
    beyond = np.sign(mean) * np.maximum(np.abs(mean) - real.censored, 0.0)
    return np.where(real.recorded, error, beyond)


def _to_reference(x: np.ndarray, y: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Pearson correlation; a prediction that is the reference but for rounding counts as constant."""
    rounding = np.abs(x).max(axis=1) < 1e-5 * np.abs(y).max(axis=1)
    return m.pearson(np.where(rounding[:, None], 0.0, x), y, keep)


def _rank_metrics(mean: np.ndarray, real: Truth, keep: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Discrimination among the test conditions of the same context."""
    names = ("pds_l1", "pds_l2", "pds_cosine", "centroid_acc")
    out = {name: np.full(len(mean), np.nan) for name in names}
    context = real.keys["context"].to_numpy()
    for k in sorted(set(context)):
        at = np.flatnonzero(context == k)
        if len(at) > 1:  # a single condition cannot be mistaken for another
            for kind in ("l1", "l2", "cosine"):
                x = mean[at] - real.control[at]
                out[f"pds_{kind}"][at] = m.pds(x, real.delta[at], keep[at], kind, seed)
        centroids = np.concatenate([real.mean[at], real.others[k]])
        out["centroid_acc"][at] = m.centroid_acc(mean[at], centroids, keep[at])
    return out
