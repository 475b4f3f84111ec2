"""Positive controls and calibrated scores, against screens whose ceiling is known."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.data.splits import Split
from scbig.evaluation import evaluate
from scbig.evaluation.calibration import calibrate
from scbig.evaluation.ceilings import extended, spearman_brown

GENES = [f"g{i}" for i in range(150)]
NAMES = [f"P{i}" for i in range(12)]


def gaussian(size: dict[str, float], n: int, seed: int, draw: int = 0, controls: int = 2000) -> ad.AnnData:
    """Cells with unit noise around effects of a given size; ``draw`` draws new cells of the same effects."""
    rng, noise = np.random.default_rng(seed), np.random.default_rng([seed, draw])
    effect = {c: s * rng.normal(size=len(GENES)) for c, s in size.items()}
    blocks = {"control": 3.0 + noise.normal(size=(controls, len(GENES)))}
    blocks |= {c: 3.0 + e + noise.normal(size=(n, len(GENES))) for c, e in effect.items()}
    labels = [c for c, b in blocks.items() for _ in range(len(b))]
    obs = pd.DataFrame({"condition": labels}, index=[f"{draw}c{i}" for i in range(len(labels))])
    out = ad.AnnData(np.concatenate(list(blocks.values())).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    out.uns["scbig"] = {"kind": "cells"}
    return out


def split_of(train: int) -> Split:
    rows = [(c, "train" if i < train else "test", "") for i, c in enumerate(NAMES)]
    return Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))


@pytest.fixture(scope="module")
def replicate():
    """Weak effects, few cells: scores of an independent replicate of the same size, which is the ceiling by design."""
    size = dict.fromkeys(NAMES, 0.25)
    real, again = gaussian(size, 60, 0), gaussian(size, 60, 0, draw=1)
    again = again[(again.obs["condition"] != "control").to_numpy()].copy()
    return evaluate({"replicate": again}, real, split_of(4), ceiling_draws=4)


def test_spearman_brown_of_known_reliabilities():
    np.testing.assert_allclose(spearman_brown(np.array([0.0, 1.0, 0.5, -0.3])), [0.0, 1.0, 2 / 3, -0.3])
    np.testing.assert_allclose(extended(np.array([4.0]), "square"), [2.0])
    assert extended(np.array([2.0]), "matched")[0] == 2.0


def test_halves_extended_to_all_cells_predict_what_a_replicate_scores(replicate):
    """The point of the corrections: half against half says what a whole new experiment would reach."""
    top = replicate.ceiling.groupby(["metric", "kind"])["value"].mean()
    for metric, tolerance in (
        ("pearson_delta", 0.03),
        ("cosine_delta", 0.03),
        ("l2", 0.03),
        ("mse", 0.02),
        ("mae", 0.03),
    ):
        # Halves are seen from half of the controls each, the replicate from controls that it shares.
        wanted = replicate.value("replicate", metric)
        assert top[metric, "half_corrected"] == pytest.approx(wanted, rel=0.12), metric
        assert abs(top[metric, "half"] - wanted) > tolerance, metric


def test_a_replicate_reaches_the_ceiling_and_the_naive_answer_is_zero(replicate):
    table = replicate.calibrated[(replicate.calibrated["stratum"] == "all") & replicate.calibrated["usable"]]
    wide = table.pivot(index="metric", columns="method", values="calibrated")
    for metric in ("pearson_delta", "e_distance", "mmd", "wasserstein", "sinkhorn_divergence", "pds_l2", "l2"):
        assert wide.loc[metric, "replicate"] == pytest.approx(1.0, abs=0.12), metric
    named = table.drop_duplicates("metric").set_index("metric")["negative_name"]
    for metric, name in named.items():
        assert wide.loc[metric, name] == pytest.approx(0.0, abs=1e-9), metric
    rows = table[(table["metric"] == "pearson_delta") & (table["method"] == "replicate")].iloc[0]
    assert rows["low"] < rows["calibrated"] < rows["high"]
    assert rows["closed"] == pytest.approx(1.0, abs=0.12) and rows["closed_over"] in ("control", "mean")


def test_without_any_effect_no_metric_is_usable():
    real, again = gaussian(dict.fromkeys(NAMES, 0.0), 60, 1), gaussian(dict.fromkeys(NAMES, 0.0), 60, 1, draw=1)
    again = again[(again.obs["condition"] != "control").to_numpy()].copy()
    scores = evaluate({"replicate": again}, real, split_of(4), ceiling_draws=3)
    table = scores.calibrated[scores.calibrated["stratum"] == "all"].drop_duplicates("metric").set_index("metric")
    # Distances in the principal components are left out: of pure noise those components fit the controls they were
    # computed from, which makes control cells a little farther from the others than these from each other.
    for metric in ("pearson_delta", "pearson_delta_ref_perturbed", "l2", "mse", "pds_l2", "centroid_acc", "r2_delta"):
        assert not table.loc[metric, "usable"] and table.loc[metric, "reason"], metric


def test_the_interpolated_duplicate_is_never_much_worse_than_the_mean():
    """A half of ten cells is worse than the mean of the training effects in squared error; interpolated, it is not."""
    rng = np.random.default_rng(0)
    shared = 0.3 * rng.normal(size=len(GENES))
    real = gaussian(dict.fromkeys(NAMES, 0.05), 24, 2)
    real.X[(real.obs["condition"] != "control").to_numpy()] += shared.astype(np.float32)
    of_mean = np.zeros((len(NAMES), len(GENES)), np.float32)
    nothing = ad.AnnData(of_mean, obs=pd.DataFrame({"condition": NAMES}, index=NAMES), var=real.var)
    nothing.uns["scbig"] = {"kind": "effects"}
    scores = evaluate({"nothing": nothing}, real, split_of(4), ceiling_draws=3)
    top = scores.ceiling[scores.ceiling["metric"] == "mse"].groupby("kind")["value"].mean()
    assert top["half_corrected"] > scores.value("mean", "mse")
    assert top["interpolated"] < 0.7 * top["half_corrected"]


def test_conditions_too_small_for_halves_are_named():
    real = gaussian(dict.fromkeys(NAMES, 0.5), 30, 3, controls=200)
    few = np.flatnonzero(real.obs["condition"] == "P7")[15:]
    real = real[np.setdiff1d(np.arange(real.n_obs), few)].copy()
    scores = evaluate({"copy": real[(real.obs["condition"] != "control").to_numpy()].copy()}, real, split_of(4))
    rows = scores.excluded[scores.excluded["method"] == "ceiling"]
    assert list(rows["condition"]) == ["P7"] and "15 real cells, at least 20" in rows["reason"].iloc[0]
    assert "P7" not in set(scores.ceiling["condition"]) and "P8" in set(scores.ceiling["condition"])


def test_the_spread_over_draws_is_told_and_more_draws_change_the_mean_little():
    real = gaussian(dict.fromkeys(NAMES, 0.25), 60, 4, controls=300)
    copy = real[(real.obs["condition"] != "control").to_numpy()].copy()
    few, many = (evaluate({"copy": copy}, real, split_of(4), ceiling_draws=n).ceiling for n in (2, 8))
    rows = [t[(t["metric"] == "pearson_delta") & (t["kind"] == "half")] for t in (few, many)]
    assert (rows[1]["sd"] > 0).all() and set(rows[1]["draws"]) == {8}
    assert abs(rows[0]["value"].mean() - rows[1]["value"].mean()) < 2 * rows[1]["sd"].mean()
    assert evaluate({"copy": copy}, real, split_of(4), ceiling_draws=0).calibrated.empty


def test_calibrated_by_hand():
    names = [f"c{i}" for i in range(40)]
    rng = np.random.default_rng(0)
    spread = rng.normal(0, 0.01, 40)
    value = {"mean": 0.2 + spread, "control": 0.0 * spread, "additive": 0.5 + spread, "model": 0.6 + spread}
    rows = [(m, c, "all", "pearson_delta", v) for m, vs in value.items() for c, v in zip(names, vs, strict=True)]
    table = pd.DataFrame(rows, columns=["method", "condition", "context", "metric", "value"])
    top = pd.DataFrame({"condition": names, "context": "all", "metric": "pearson_delta", "kind": "half_corrected",
                        "value": 0.8 + spread})  # fmt: skip
    groups = {"all": pd.MultiIndex.from_product([names, ["all"]])}
    found = calibrate(table, top, groups, ["mean", "additive"]).set_index("method")
    assert found.loc["model", "calibrated"] == pytest.approx(0.4 / 0.6, abs=1e-6)
    assert found.loc["model", "closed"] == pytest.approx(0.1 / 0.3, abs=1e-6)
    assert found.loc["model", "closed_over"] == "additive" and np.isnan(found.loc["additive", "closed"])
    assert found.loc["control", "calibrated"] < 0  # not clipped
    assert (found["negative_name"] == "mean").all() and found["usable"].all()
    assert found.loc["model", "range"] == pytest.approx(0.6, abs=1e-6)
