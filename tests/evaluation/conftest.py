"""A made-up outcome of a comparison with every table filled: what the report has to show at its fullest."""

import numpy as np
import pandas as pd
import pytest

from scbig.evaluation import METRICS, Scores
from scbig.evaluation.calibration import calibrate
from scbig.evaluation.ceilings import COLUMNS, extended
from scbig.evaluation.judge import SEEDS
from scbig.evaluation.statistics import paired_tests, summarize

# Quality of each method between knowing nothing (0) and a perfect prediction (1).
METHODS = {
    "scBIG": 0.74,
    "scBIG_small": 0.73,
    "other_model": 0.35,
    "low_rank": 0.62,
    "additive": 0.58,
    "linear": 0.45,
    "knn-string_netmf128": 0.5,
    "kernel_ridge-all": 0.52,
    "elastic_net-all": 0.4,
    "latent_additive": 0.44,
    "scgen": 0.3,
    "fusion-all": 0.55,
    "mean": 0.2,
    "shuffled": 0.05,
    "control": 0.0,
}
MODELS = ("scBIG", "scBIG_small", "other_model")


def _value(metric: str, good: np.ndarray, size: np.ndarray) -> np.ndarray:
    """A metric's value for predictions of a quality, on effects of a size."""
    if metric in ("n_de", "n_de_observed"):
        return np.round(size * (20 if metric == "n_de" else 25) * (0.4 + 0.6 * good))
    if metric == "variance_ratio":
        return 0.3 + 0.75 * good
    if metric.startswith("pds") or metric.startswith("direction") or metric == "centroid_acc":
        return 0.5 + 0.5 * good
    if METRICS[metric].higher:
        return good
    return np.maximum(1.05 - good, 0.02) * size * (1.0 if metric != "e_distance_share" else 1.0 / size)


def make_scores(cells: bool = True, n: int = 30, strata: tuple[str, ...] = ("both seen", "one unseen")) -> Scores:
    """Scores of 15 methods on ``n`` conditions, drawn at random; all tables agree with one another."""
    rng = np.random.default_rng(3)
    genes = tuple(f"GENE{i}" for i in range(300))
    names = [f"GENE{i}+GENE{(7 * i) % 90 + 100}" for i in range(n)]
    stratum = [strata[i % len(strata)] for i in range(n)]
    size = rng.gamma(3.0, 1.2, n) + 0.4
    conditions = pd.DataFrame(
        {"condition": names, "context": "K562", "stratum": stratum, "n_real": rng.integers(12, 600, n),
         "n_used": 100, "effect_size": size, "chance_pds": 0.5 + 1 / (2 * n)}
    )  # fmt: skip
    metrics = [name for name, m in METRICS.items() if (cells or not m.cells) and name != "pearson_delta_recorded"]
    top = np.clip(size / (size + 0.7), 0, 0.97)
    rows = []
    noise = rng.normal(0, 0.08, n)
    for method, quality in METHODS.items():
        good = np.clip(quality * top + noise + rng.normal(0, 0.05, n), -0.2, 0.98)
        for metric in metrics:
            value = _value(metric, good, size)
            for suffix in ("", "_with_targets"):
                rows.append(conditions[["condition", "context", "stratum"]].assign(
                    method=method, metric=metric + suffix, value=value))  # fmt: skip
        if cells:
            control = _value("e_distance", np.zeros(n), size)
            rows.append(conditions[["condition", "context", "stratum"]].assign(
                method=method, metric="e_distance_control", value=control))  # fmt: skip
    per_condition = pd.concat(rows, ignore_index=True)
    per_condition = per_condition[["method", "condition", "context", "stratum", "metric", "value"]]
    index = pd.MultiIndex.from_frame(conditions[["condition", "context"]])
    groups = {"all": index} | {s: index[np.array(stratum) == s] for s in strata if len(strata) > 1}
    summary = summarize(per_condition, groups, 200)
    if "seed_sd" not in summary:
        summary = summary.assign(seed_sd=np.nan, n_seeds=1)
    ours = summary["method"] == "scBIG"
    summary.loc[ours, "seed_sd"] = 0.01
    summary.loc[ours, "n_seeds"] = 3
    excluded = pd.DataFrame(
        [("latent_additive", names[1], "K562", "", "no training effect of the single perturbation: GENE7"),
         ("ceiling", names[2], "K562", "", "14 real cells, at least 20 are needed for two halves: no ceiling")],
        columns=["method", "condition", "context", "metric", "reason"])  # fmt: skip
    observed = rng.standard_t(3, (n, len(genes))) * size[:, None] / 17
    predicted = {m: q * observed + 0.06 * rng.normal(size=observed.shape) for m, q in METHODS.items()}
    provenance = {
        "split": "additive-0", "split_rule": "additive", "split_seed": 0, "split_sha256": "0" * 64,
        "test_conditions": n, "genes": len(genes), "data": "cells" if cells else "effects", "n_cells": 100, "seed": 0,
        "control_cells": {"K562": 900},
    }  # fmt: skip
    scores = Scores(
        per_condition, summary, excluded, conditions, provenance, genes, observed.astype(np.float32),
        {m: p.astype(np.float32) for m, p in predicted.items()}, tests=paired_tests(per_condition, groups, MODELS, draws=200),
        seeds=_seeds(summary),
    )  # fmt: skip
    if not cells:
        return scores
    ceiling = _ceiling(conditions, metrics, top, size, rng)
    filled = calibrate(per_condition, ceiling, groups, [m for m in METHODS if m not in MODELS], draws=200)
    return Scores(**{k: getattr(scores, k) for k in scores.__dataclass_fields__} | {
        "ceiling": ceiling, "calibrated": filled})  # fmt: skip


def _ceiling(conditions, metrics, top, size, rng) -> pd.DataFrame:
    rows = []
    for metric in metrics:
        # A metric that cannot tell real cells from naive answers.
        reach = 0.1 if metric == "coexpression_error" else 0.85
        half = _value(metric, np.clip(reach * top + rng.normal(0, 0.03, len(top)), 0.02, 0.97), size)
        kinds = {"half": half, "interpolated": _value(metric, reach * top, size)}
        if METRICS[metric].halves != "matched":
            kinds["half_corrected"] = extended(half, METRICS[metric].halves)
        for kind, value in kinds.items():
            rows.append(conditions[["condition", "context", "stratum"]].assign(
                metric=metric, kind=kind, value=value, sd=0.02, draws=5))  # fmt: skip
    table = pd.concat(rows, ignore_index=True)[list(COLUMNS)]
    # One condition with too few cells for two halves.
    return table[table["condition"] != conditions["condition"][2]].reset_index(drop=True)


def _seeds(summary) -> pd.DataFrame:
    part = summary[(summary["method"] == "scBIG") & summary["metric"].isin(METRICS)]
    rows = [(r["method"], s, r["stratum"], r["metric"], r["mean"] + (s - 1) * 0.01)
            for s in range(3) for _, r in part.iterrows()]  # fmt: skip
    return pd.DataFrame(rows, columns=list(SEEDS))


@pytest.fixture(scope="session")
def full_scores() -> Scores:
    """15 methods, two strata, 30 conditions, every table filled; not to be changed."""
    return make_scores()


@pytest.fixture(scope="session")
def effect_scores() -> Scores:
    """The same on a table of effects: no metrics on cells, no ceilings, nothing calibrated."""
    return make_scores(cells=False)
