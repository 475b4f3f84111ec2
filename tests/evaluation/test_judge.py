"""The judge judged: predictions of known worth must come out in the right order, and bad input is named."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import baselines
from scbig.data.conditions import genes_of
from scbig.data.splits import Split, make
from scbig.errors import InputError
from scbig.evaluation import Space, compare, e_distance, evaluate
from scbig.evaluation.judge import EFFECT_SIZES
from scbig.evaluation.metrics import chance_pds, pds
from scbig.evaluation.statistics import bootstrap_weights, interval

SINGLES = [f"P{i}" for i in range(8)]
TESTED = ["P0+P1", "P2+P3", "P4+P5", "P6+P7", "P0+P7", "P1+P6"]
GENES = [*SINGLES, *(f"g{i}" for i in range(52))]


def log_cells(profile: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    depth = rng.lognormal(0.0, 0.2, size=(n, 1))
    counts = rng.poisson(depth * np.exp(profile) * 6)
    return np.log1p(counts / depth).astype(np.float32)


def table_of(blocks: dict[tuple[str, str], np.ndarray], kind: str) -> ad.AnnData:
    obs = pd.DataFrame(
        [key for key, block in blocks.items() for _ in range(len(block))], columns=["condition", "context"]
    )
    obs.index = [f"{kind}{i}" for i in range(len(obs))]
    x = sp.csr_matrix(np.concatenate(list(blocks.values())))
    data = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES))
    data.uns["scbig"] = {"kind": kind}
    return data


@pytest.fixture(scope="module")
def world():
    """A screen, a second draw of its test cells (the other half), and the split."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.5, len(GENES))
    effect = {g: rng.normal(0, 0.4, len(GENES)) for g in SINGLES}
    for g in SINGLES:
        effect[g][GENES.index(g)] = 1.5
    profile = {"control": base} | {c: base + sum(effect[g] for g in genes_of(c)) for c in [*SINGLES, *TESTED]}
    size = dict.fromkeys(profile, 60) | {"control": 200}
    real = table_of({(c, "all"): log_cells(p, size[c], rng) for c, p in profile.items()}, "screen")
    half = table_of({(c, "all"): log_cells(profile[c], 60, rng) for c in TESTED}, "cells")
    rows = [(c, "train", "") for c in SINGLES] + [(c, "test", "near" if "P0" in c else "far") for c in TESTED]
    split = Split("made", "additive", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    return real, half, split


def as_prediction(data: ad.AnnData, labels=None) -> ad.AnnData:
    out = data.copy()
    out.uns["scbig"] = {"kind": "cells"}
    if labels is not None:
        out.obs["condition"] = labels
    return out


@pytest.fixture(scope="module")
def fixtures(world):
    real, half, _ = world
    tested = real[real.obs["condition"].isin(TESTED).to_numpy()]
    control = real[(real.obs["condition"] == "control").to_numpy()]
    turned = dict(zip(TESTED, TESTED[1:] + TESTED[:1], strict=True))
    rng = np.random.default_rng(5)
    blocks = {(c, "all"): control.X.toarray()[rng.choice(200, 60, replace=False)] for c in TESTED}
    constant = {(c, "all"): np.full((60, len(GENES)), 1.7, np.float32) for c in TESTED}
    return {
        "copy": as_prediction(tested),
        "half": as_prediction(half),
        "control copy": table_of(blocks, "cells"),
        "constant": table_of(constant, "cells"),
        "shuffled": as_prediction(half, half.obs["condition"].map(turned).to_numpy()),
    }


@pytest.fixture(scope="module")
def scores(world, fixtures):
    real, _, split = world
    return evaluate(fixtures, real, split)


def test_fixtures_come_out_in_the_right_order(scores):
    def value(metric):
        return {name: scores.value(name, metric) for name in scores.methods}

    r = value("pearson_delta")
    assert r["copy"] == pytest.approx(1) and r["copy"] > r["half"] > 0.8
    assert r["half"] > r["shuffled"] + 0.3 and abs(r["control copy"]) < 0.3
    e = value("e_distance_share")
    assert e["copy"] < 0.05 and abs(e["half"]) < 0.05
    assert e["control copy"] == pytest.approx(1, abs=0.1) and e["constant"] > e["control copy"]
    assert e["shuffled"] > 0.5
    for metric in ("pds_l1", "pds_l2", "pds_cosine", "centroid_acc"):
        v = value(metric)
        assert v["copy"] == v["half"] == 1 and v["shuffled"] < 0.7
    chance = scores.conditions["chance_pds"].iloc[0]
    assert chance == pytest.approx(0.5 + 1 / 12)
    assert value("pds_l2")["constant"] == pytest.approx(chance)
    for metric in ("mse", "mae", "l2"):
        v = value(metric)
        assert v["copy"] == 0 < v["half"] < min(v["shuffled"], v["constant"], v["control copy"])
    d = value("direction_acc_top20")
    assert d["copy"] == 1 and d["half"] > 0.95 > d["control copy"]
    ref = value("pearson_delta_ref_perturbed")
    assert ref["copy"] == pytest.approx(1) and ref["half"] > 0.8 > ref["control copy"]


def test_the_mean_of_training_perturbations_knows_nothing_to_that_reference(world):
    real, _, split = world
    data = baselines.training_data(real, split)
    tables, _, _ = baselines.predictions(["mean", "additive"], data, TESTED)
    found = evaluate(tables, real, split)
    assert abs(found.value("mean", "pearson_delta_ref_perturbed")) < 1e-3
    assert found.value("additive", "pearson_delta_ref_perturbed") > 0.8


def test_perturbed_genes_do_not_count_unless_asked(world, fixtures, scores):
    real, _, split = world
    spoilt = fixtures["half"].copy()
    x = spoilt.X.toarray()
    for i, condition in enumerate(spoilt.obs["condition"]):
        x[i, [GENES.index(g) for g in genes_of(condition)]] = 0.0
    spoilt.X = sp.csr_matrix(x)
    found = evaluate({"spoilt": spoilt}, real, split)
    for metric in ("pearson_delta", "mse", "pds_l2", "e_distance", "e_distance_share"):
        assert found.value("spoilt", metric) == pytest.approx(scores.value("half", metric), abs=1e-9)
        assert (
            found.value("spoilt", f"{metric}_with_targets")
            != pytest.approx(scores.value("half", f"{metric}_with_targets"), abs=1e-4)
            or metric == "pds_l2"
        )


def test_rankings_do_not_leak_the_label_through_perturbed_genes(world, fixtures, scores):
    """Leaving out the genes of one's own condition only, as cell-eval does, lifts a constant far above chance."""
    real, _, _ = world
    x = scores.predicted["constant"].astype(float)
    own = np.array([[g not in genes_of(c) for g in GENES] for c in scores.conditions["condition"]])
    chance = chance_pds(len(TESTED))
    assert pds(x, scores.observed.astype(float), own, "l2").mean() > chance + 0.15
    for metric in ("pds_l1", "pds_l2", "pds_cosine"):
        assert scores.value("constant", metric) == pytest.approx(chance)
    spare = real[:, :12].copy()
    spare.var_names = [*SINGLES, *GENES[8:12]]
    split = world[2]
    few = evaluate({"half": fixtures["half"][:, :12].copy()}, spare, split)
    assert "only 4 genes" in few.excluded["reason"].iloc[0]


def test_numbers_of_one_condition_by_hand(world, fixtures, scores):
    real, _, split = world
    condition = "P2+P3"
    sources = {"real": (real, condition), "half": (fixtures["half"], condition), "control": (real, "control")}
    x = {k: a.X.toarray()[(a.obs["condition"] == c).to_numpy()].astype(float) for k, (a, c) in sources.items()}
    keep = [g not in ("P2", "P3") for g in GENES]
    delta = {k: (x[k].mean(axis=0) - x["control"].mean(axis=0))[keep] for k in ("real", "half")}
    rows = scores.per_condition
    rows = rows[(rows["method"] == "half") & (rows["condition"] == condition)].set_index("metric")["value"]
    assert rows["pearson_delta"] == pytest.approx(np.corrcoef(delta["half"], delta["real"])[0, 1], abs=1e-9)
    assert rows["mse"] == pytest.approx(np.mean((delta["half"] - delta["real"]) ** 2))
    train = split.assign(real.obs) == "train"
    space = Space.fit(real.X[train], genes=GENES)
    y, p = (space.project(x[k], without=("P2", "P3")) for k in ("real", "half"))
    assert rows["e_distance"] == pytest.approx(e_distance(p, y), abs=1e-6)


def test_order_of_cells_and_genes_does_not_matter(world, fixtures):
    real, _, split = world
    rng = np.random.default_rng(1)
    given = {name: fixtures[name] for name in ("half", "control copy")}
    first = evaluate(given, real, split, n_cells=30)
    genes = rng.permutation(len(GENES))
    turned = {name: a[rng.permutation(a.n_obs)][:, genes].copy() for name, a in given.items()}
    second = evaluate(turned, real[rng.permutation(real.n_obs)].copy(), split, n_cells=30)
    pd.testing.assert_frame_equal(second.per_condition, first.per_condition, atol=1e-6, rtol=1e-5)
    third = evaluate(given, real, split, n_cells=30, seed=1)
    assert not np.allclose(third.per_condition["value"], first.per_condition["value"])


def test_every_method_is_compared_with_as_many_cells(world, fixtures):
    real, _, split = world
    few = fixtures["half"][::2].copy()  # 30 cells each
    found = evaluate({"few": few, "copy": fixtures["copy"]}, real, split)
    assert set(found.conditions["n_used"]) == {30} and set(found.conditions["n_real"]) == {60}
    # Populations are cut to 30 cells; a mean profile is that of all cells a method gives.
    whole = evaluate({"copy": fixtures["copy"]}, real, split)
    assert found.value("copy", "mse") == 0 and found.value("few", "mse") > 0
    assert found.value("copy", "n_de_observed") < whole.value("copy", "n_de_observed")
    assert set(evaluate({"copy": fixtures["copy"]}, real, split, n_cells=20).conditions["n_used"]) == {20}


def test_strata_and_intervals(scores):
    s = scores.summary
    assert set(s["stratum"]) == {"all", "near", "far"}
    row = s[(s["method"] == "half") & (s["metric"] == "pearson_delta")].set_index("stratum")
    assert list(row.loc[["all", "near", "far"], "n"]) == [6, 2, 4]
    assert (row["low"] <= row["mean"]).all() and (row["mean"] <= row["high"]).all()
    values = scores.per_condition.query("method == 'half' and metric == 'pearson_delta' and stratum == 'near'")
    assert row.loc["near", "mean"] == pytest.approx(values["value"].mean())


def test_share_is_a_ratio_of_means(scores):
    wide = scores.per_condition.query("method == 'half'").pivot(index="condition", columns="metric", values="value")
    expected = wide["e_distance"].mean() / wide["e_distance_control"].mean()
    assert scores.value("half", "e_distance_share") == pytest.approx(expected)


def test_bootstrap_covers_the_mean():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        x = rng.normal(3.0, 1.0, size=(40, 1))
        _, low, high = interval(x, bootstrap_weights(40, 300, trial))
        hits += low[0] < 3.0 < high[0]
    assert 0.88 < hits / 200 < 0.99
    x[::3] = np.nan
    mean, _, _ = interval(x, bootstrap_weights(40))
    assert mean[0] == pytest.approx(np.nanmean(x))


def test_comparison_knows_a_real_difference_from_none(world, fixtures, scores):
    gap = compare(scores.per_condition, "half", "shuffled", "pearson_delta")
    assert gap.real and gap.mean > 0 and gap.low > 0 and gap.n == 6 and gap.p < 0.05
    real, _, split = world
    halves = {k: fixtures["half"][i::2].copy() for i, k in enumerate(("one", "two"))}
    found = evaluate(halves, real, split)
    assert not compare(found.per_condition, "one", "two", "pearson_delta").real
    assert compare(found.per_condition, "one", "nobody", "mse").n == 0


def test_effects_are_judged_without_metrics_on_cells(world):
    real, _, split = world
    tables, _, _ = baselines.predictions(["control", "additive"], baselines.training_data(real, split), TESTED)
    found = evaluate(tables, real, split)
    rows = found.per_condition
    ours = rows[rows["method"] == "additive"]
    assert not ours["metric"].str.startswith("e_distance").any()
    assert found.value("control", "pearson_delta") == 0 and found.value("additive", "pearson_delta") > 0.8
    moved = evaluate(tables, real, split, shifted=["control", "additive"])
    assert moved.value("additive", "pearson_delta") == pytest.approx(found.value("additive", "pearson_delta"))
    assert moved.value("control", "e_distance_share") == pytest.approx(1)
    assert moved.value("additive", "e_distance_share") < 0.6


def test_moving_controls_in_the_judge_equals_moving_them_outside(world):
    real, _, split = world
    data = baselines.training_data(real, split)
    tables, _, _ = baselines.predictions(["additive"], data, TESTED)
    controls = real[(real.obs["condition"] == "control").to_numpy()]
    cells, _ = baselines.as_cells(baselines.fit("additive", data), TESTED, controls, 200, 0)
    found = evaluate({"inside": tables["additive"], "outside": cells}, real, split, shifted=["inside"])
    for metric in ("pearson_delta", "e_distance"):
        assert found.value("inside", metric) == pytest.approx(found.value("outside", metric), abs=0.15)


def test_held_out_cells_are_compared_with_held_out_controls(world):
    real, _, _ = world
    split = make("cells", real.obs, {"test_fraction": 0.4}, 0)
    part = split.assign(real.obs)
    control = (real.obs["condition"] == "control").to_numpy()
    tested = as_prediction(real[(part == "test") & ~control])
    tables, _, _ = baselines.predictions(
        ["condition_mean"], baselines.training_data(real, split), split.conditions("test")
    )
    found = evaluate({"copy": tested, **tables}, real, split, shifted=["condition_mean"])
    assert found.value("copy", "pearson_delta") == pytest.approx(1)
    x = real.X.toarray()
    rows = (real.obs["condition"] == "P3").to_numpy() & (part == "test")
    expected = x[rows].mean(axis=0) - x[control & (part == "test")].mean(axis=0)
    at = list(found.conditions["condition"]).index("P3")
    np.testing.assert_allclose(found.observed[at], expected, atol=1e-5)
    # An effect is the training one, from training controls: the noise of the held-out controls is not in it.
    trained = x[(real.obs["condition"] == "P3").to_numpy() & (part == "train")].mean(axis=0)
    trained = trained - x[control & (part == "train")].mean(axis=0)
    np.testing.assert_allclose(found.predicted["condition_mean"][at], trained, atol=1e-5)


def test_a_table_of_effects_can_be_the_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(14, len(GENES))).astype(np.float32)
    obs = pd.DataFrame({"condition": [*SINGLES, *TESTED]}, index=[*SINGLES, *TESTED])
    data = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES), uns={"scbig": {"kind": "effects"}})
    rows = [(c, "test" if "+" in c else "train", "") for c in obs.index]
    split = Split("made", "additive", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    found = evaluate({"itself": data}, data, split)
    assert found.value("itself", "pearson_delta") == pytest.approx(1)
    assert "8 predicted conditions are not judged" in found.excluded["reason"].iloc[0]
    doubled = ad.AnnData(
        x, obs=pd.DataFrame({"condition": ["P0+P1", *TESTED, *SINGLES[1:]]}, index=obs.index), var=data.var
    )
    doubled.uns["scbig"] = {"kind": "effects"}
    with pytest.raises(InputError, match=r"'m' hold more than one effect of P0\+P1"):
        evaluate({"m": doubled}, data, split)
    cells = as_prediction(data)
    with pytest.raises(InputError, match="'m' are cells but the data holds effects"):
        evaluate({"m": cells}, data, split)


def test_two_contexts_are_kept_apart(world):
    real, half, _ = world
    other = real.copy()
    other.obs["context"] = "other"
    other.obs_names = [f"o{name}" for name in other.obs_names]
    both = ad.concat([real, other])
    both.uns["scbig"] = {"kind": "screen"}
    rows = [(c, k, "test" if c in TESTED else "train", "") for c in [*SINGLES, *TESTED] for k in ("all", "other")]
    split = Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "context", "part", "stratum"]))
    found = evaluate({"half": half}, both, split)
    assert set(found.summary["stratum"]) == {"all", "common", "context all", "context other", *EFFECT_SIZES}
    missing = found.excluded
    assert set(missing["context"]) == {"other"} and set(missing["condition"]) == set(TESTED)
    nameless = half.copy()
    del nameless.obs["context"]
    with pytest.raises(InputError, match=r"'half' have no obs\['context'\].*all, other"):
        evaluate({"half": nameless}, both, split)


# ---- what is left out, and why ----


def reason_of(scores, condition):
    rows = scores.excluded
    return rows[rows["condition"] == condition]["reason"].iloc[0]


def test_missing_single_and_broken_predictions_are_reported(world, fixtures):
    real, _, split = world
    half = fixtures["half"].copy()
    label = half.obs["condition"].to_numpy()
    keep = label != "P0+P1"
    keep[np.flatnonzero(label == "P2+P3")[1:]] = False
    half = half[keep].copy()
    x = half.X.toarray()
    x[np.flatnonzero(half.obs["condition"] == "P4+P5")[0], 3] = np.nan
    half.X = x
    found = evaluate({"half": half, "copy": fixtures["copy"]}, real, split)
    assert reason_of(found, "P0+P1") == "not predicted"
    assert reason_of(found, "P2+P3") == "1 predicted cell, at least 10 are needed"
    assert "NaN" in reason_of(found, "P4+P5")
    count = found.summary.query("metric == 'mse' and method == 'copy'").set_index("stratum")["n"]
    assert count["all"] == 6 and count["common"] == 3
    why = {("half", "P0+P1", "all"): "no embedding of P0"}
    assert reason_of(evaluate({"half": half}, real, split, reasons=why), "P0+P1") == "no embedding of P0"


def test_a_test_condition_with_few_real_cells_is_reported(world, fixtures):
    real, _, split = world
    at = np.flatnonzero(real.obs["condition"] == "P0+P1")[4:]
    fewer = real[np.setdiff1d(np.arange(real.n_obs), at)].copy()
    found = evaluate({"copy": fixtures["copy"]}, fewer, split)
    assert reason_of(found, "P0+P1") == "4 real test cells, at least 10 are needed"
    assert "P0+P1" not in set(found.conditions["condition"])


def test_spelling_and_order_of_a_combination(world, fixtures, scores):
    real, _, split = world
    turned = fixtures["half"].copy()
    turned.obs["condition"] = ["+".join(reversed(c.split("+"))) for c in turned.obs["condition"]]
    found = evaluate({"half": turned}, real, split)
    assert found.value("half", "mse") == pytest.approx(scores.value("half", "mse"))


def change(data, x=None, **uns):
    out = data.copy()
    if x is not None:
        out.X = x(out.X.toarray())
    out.uns["scbig"] = {"kind": "cells"} | uns
    return out


def test_extra_genes_are_named_and_missing_ones_refused(world, fixtures):
    real, _, split = world
    half = fixtures["half"]
    extra = ad.AnnData(
        sp.hstack([half.X, half.X[:, :1]]).tocsr(), obs=half.obs, var=pd.DataFrame(index=[*GENES, "XIST"])
    )
    extra.uns["scbig"] = {"kind": "cells"}
    assert evaluate({"half": extra}, real, split).excluded["reason"].str.contains("XIST").any()
    with pytest.raises(InputError, match=r"'half' lack 2 of the data's 60 genes: P0, g51"):
        evaluate({"half": half[:, 1:-1].copy()}, real, split)


@pytest.mark.parametrize(
    ("make_it", "message"),
    [
        (lambda a: change(a, lambda x: 10 * x), r"'m' hold values up to .* not log-expression"),
        (lambda a: change(a, lambda x: x - 9), r"'m' hold values down to -9"),
        (lambda a: change(a, lambda x: x - x.mean(axis=0)), r"'m' hold negative values, .* do not centre"),
        (
            lambda a: change(a, lambda x: sp.csr_matrix(np.clip((x - x.mean(0)) / (x.std(0) + 1e-3), -4, 10))),
            r"'m' hold negative values, .* do not centre or scale",
        ),
        (
            lambda a: change(a, lambda x: np.round(np.expm1(np.clip(x, 0, 2)))),
            r"'m' hold integers up to 6: .*counts",
        ),
        (lambda a: change(a, normalization="1e4"), r"'m' state normalization 1e4, the data median"),
        (lambda a: change(a, target_sum=1e4), r"'m' state target_sum 10000.0, the data 500.0"),
        (lambda a: change(a, kind="pictures"), r"'m' do not say whether they are cells or effects"),
        (lambda a: change(a, lambda x: np.full_like(x, np.nan)), r"'m' answer no test condition"),
        (
            lambda a: a[a.obs["condition"] == "nothing"].copy(),
            r"'m' answer no test condition; those are P0\+P1",
        ),
    ],
)
def test_predictions_that_cannot_be_judged_are_refused(world, fixtures, make_it, message):
    real, _, split = world
    real = real.copy()
    real.uns["scbig"] = {"kind": "screen", "normalization": "median", "target_sum": 500.0}
    with pytest.raises(InputError, match=message):
        evaluate({"m": make_it(fixtures["half"])}, real, split)


def test_repeated_genes_and_columns_that_are_not_there(world, fixtures):
    real, _, split = world
    twice = fixtures["half"].copy()
    twice.var_names = [*GENES[:-1], GENES[0]]
    with pytest.raises(InputError, match="'m' name genes more than once: P0"):
        evaluate({"m": twice}, real, split)
    bare = fixtures["half"].copy()
    del bare.obs["condition"]
    with pytest.raises(InputError, match=r"'m' have no obs\['condition'\]"):
        evaluate({"m": bare}, real, split)
    with pytest.raises(InputError, match="no predictions"):
        evaluate({}, real, split)
    with pytest.raises(InputError, match="nobody"):
        evaluate({"m": fixtures["half"]}, real, split, shifted=["nobody"])


def test_a_leaking_split_is_refused(world, fixtures):
    real, _, split = world
    table = split.table.copy()
    table.loc[table["condition"] == "P0", "part"] = "val"
    with pytest.raises(InputError, match=r"leaks: .*P0\+P1"):
        evaluate(fixtures, real, Split("leaky", "additive", 0, table))


def test_no_controls_in_a_context_is_refused(world, fixtures):
    real, _, split = world
    bare = real[(real.obs["condition"] != "control").to_numpy()].copy()
    with pytest.raises(InputError, match="0 train control cells in context 'all'"):
        evaluate(fixtures, bare, split)


@pytest.mark.realdata
def test_additive_on_norman_through_the_judge(shared):
    """The known figures, 0.675 over all genes and 0.775 over the top 20, count the perturbed genes."""
    data = ad.read_h5ad(shared / "data" / "norman2019_effects.h5ad")
    data.uns["scbig"] = {"kind": "effects"}
    names = set(data.obs["condition"].astype(str))
    part = {c: "train" if len(genes_of(c)) == 1 else "test" if set(genes_of(c)) <= names else "val" for c in names}
    rows = [(c, p, "") for c, p in part.items()]
    split = Split("all", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    training = baselines.training_data_from_effects(data, split)
    tables, _, _ = baselines.predictions(["additive", "mean", "control"], training, split.conditions("test"))
    found = evaluate(tables, data, split)
    assert len(found.conditions) == 126
    assert found.value("additive", "pearson_delta_with_targets") == pytest.approx(0.675, abs=0.005)
    assert found.value("additive", "pearson_delta_top20_with_targets") == pytest.approx(0.775, abs=0.005)
    assert found.value("additive", "pearson_delta") == pytest.approx(0.669, abs=0.005)
    assert found.value("mean", "pearson_delta_ref_perturbed") == 0
    for name in ("mean", "control"):
        assert found.value(name, "pds_l2") == pytest.approx(0.5 + 1 / 252)
