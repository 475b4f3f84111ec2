"""Several seeds of one method, batches, censored tables, thirds of effect sizes, suspicious cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.data import effects_table
from scbig.data.splits import Split
from scbig.evaluation import evaluate
from scbig.evaluation.judge import EFFECT_SIZES
from scbig.evaluation.statistics import HEADLINE

GENES = [f"g{i}" for i in range(60)]
NAMES = [f"P{i}" for i in range(16)]


def split_of(names=NAMES) -> Split:
    rows = [(c, "train" if i < 3 else "test", "") for i, c in enumerate(names)]
    return Split("made", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))


def screen(rng: np.random.Generator, effect: dict[str, np.ndarray], n: int = 40, controls: int = 200) -> ad.AnnData:
    blocks = {"control": rng.normal(2, 1, (controls, 60))}
    blocks |= {c: 2 + e + rng.normal(0, 1, (n, 60)) for c, e in effect.items()}
    labels = [c for c, b in blocks.items() for _ in range(len(b))]
    obs = pd.DataFrame({"condition": labels}, index=[f"c{i}" for i in range(len(labels))])
    out = ad.AnnData(np.concatenate(list(blocks.values())).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    out.uns["scbig"] = {"kind": "cells"}
    return out


@pytest.fixture(scope="module")
def effect():
    rng = np.random.default_rng(0)
    return {c: 0.2 * (i + 1) / 4 * rng.normal(size=60) for i, c in enumerate(NAMES)}


def trained(effect: dict[str, np.ndarray], seed: int, error: float = 0.3) -> ad.AnnData:
    """A model that is off by something of its own in every condition, and by a little luck of its seed."""
    rng, own = np.random.default_rng([7, seed]), np.random.default_rng(99)
    x = np.stack([e + error * own.normal(size=60) + 0.1 * rng.normal(size=60) for e in effect.values()])
    out = ad.AnnData(x.astype(np.float32), obs=pd.DataFrame({"condition": NAMES}, index=NAMES))
    out.var_names = GENES
    out.uns["scbig"] = {"kind": "effects"}
    return out


def test_two_seeds_of_one_method_do_not_differ(effect):
    real = screen(np.random.default_rng(1), effect)
    found = evaluate({"one": trained(effect, 0), "two": trained(effect, 1)}, real, split_of(), ceiling_draws=0)
    pair = found.tests[(found.tests["first"] == "one") & (found.tests["second"] == "two")]
    assert set(pair["metric"]) <= set(HEADLINE) and not pair[pair["stratum"] == "all"]["real"].any()
    worse = evaluate({"one": trained(effect, 0), "two": trained(effect, 1, 0.6)}, real, split_of(), ceiling_draws=0)
    pair = worse.tests[(worse.tests["first"] == "one") & (worse.tests["second"] == "two")].set_index(
        ["stratum", "metric"]
    )
    assert pair.loc[("all", "pearson_delta"), "real"] and pair.loc[("all", "pearson_delta"), "mean"] > 0


def test_seeds_of_one_method_are_averaged_and_their_spread_told(effect):
    real = screen(np.random.default_rng(1), effect)
    copies = [trained(effect, s) for s in range(3)]
    together = evaluate({"model": copies}, real, split_of(), ceiling_draws=0)
    alone = [evaluate({"model": c}, real, split_of(), ceiling_draws=0).value("model", "pearson_delta") for c in copies]
    row = together.summary.query("method == 'model' and metric == 'pearson_delta' and stratum == 'all'").iloc[0]
    assert row["mean"] == pytest.approx(np.mean(alone)) and row["seed_sd"] == pytest.approx(np.std(alone, ddof=1))
    assert row["n_seeds"] == 3
    told = together.seeds.query("metric == 'pearson_delta' and stratum == 'all'").sort_values("seed")
    np.testing.assert_allclose(told["mean"], alone)
    assert together.methods == ["model", "control", "mean", "shuffled"]
    np.testing.assert_allclose(
        together.predicted["model"], np.mean([c.X[3:] for c in copies], axis=0)[np.argsort(NAMES[3:])], atol=1e-5
    )
    single = together.summary.query("method == 'mean'")
    assert single["seed_sd"].isna().all() and (single["n_seeds"] == 1).all()


def test_a_seed_that_lacks_a_condition_is_named(effect):
    real = screen(np.random.default_rng(1), effect)
    copies = [trained(effect, 0), trained(effect, 1)[[c != "P9" for c in NAMES]].copy()]
    found = evaluate({"model": copies}, real, split_of(), ceiling_draws=0)
    row = found.excluded[found.excluded["condition"] == "P9"].iloc[0]
    assert row["method"] == "model (seed 1)" and row["reason"] == "not predicted"
    count = found.summary.query("method == 'model' and metric == 'mse' and stratum == 'all'")["n"].iloc[0]
    assert count == len(NAMES) - 3


def test_batches_weigh_the_same(effect):
    """One batch shifts all its cells; conditions sit in it in unequal numbers, which plain means take for effects."""
    rng = np.random.default_rng(2)
    real = screen(rng, effect, n=60, controls=300)
    batch = (rng.random(real.n_obs) < np.where(real.obs["condition"] == "control", 0.5, 0.85)).astype(int)
    real.obs["batch"] = [f"b{b}" for b in batch]
    real.X = real.X + 1.5 * batch[:, None].astype(np.float32)
    truth = ad.AnnData(
        np.stack(list(effect.values())).astype(np.float32), obs=pd.DataFrame({"condition": NAMES}, index=NAMES)
    )
    truth.var_names, truth.uns["scbig"] = GENES, {"kind": "effects"}
    found = evaluate({"truth": truth}, real, split_of(), ceiling_draws=0)
    assert found.value("truth", "l2_ba_ate") < 0.5 * found.value("truth", "l2")
    noise = np.sqrt(60 * (1 / 51 + 1 / 9) / 4)  # of two batch means, halved, from 51 and 9 cells
    assert found.value("truth", "l2_ba_ate") == pytest.approx(noise, rel=0.35)
    assert found.provenance["batches"] == 2


def test_entries_below_the_threshold_of_a_censored_table_are_intervals(tmp_path):
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 60))
    whole = x.copy()
    x[np.abs(x) < 0.5] = 0.0
    data = ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=pd.DataFrame({"condition": NAMES}, index=NAMES))
    data.var_names = GENES
    data.write_h5ad(tmp_path / "effects.h5ad")
    table = effects_table(tmp_path / "effects.h5ad")

    def predicted(values):
        out = ad.AnnData(values.astype(np.float32), obs=pd.DataFrame({"condition": NAMES}, index=NAMES))
        out.var_names, out.uns["scbig"] = GENES, {"kind": "effects"}
        return out

    beyond = np.where(x == 0, np.sign(whole) * 0.75, x)
    methods = {"uncensored": predicted(whole), "zeros": predicted(x), "beyond": predicted(beyond)}
    found = evaluate(methods, table, split_of())
    # What lies inside the interval is no error, and what lies outside is one by as much.
    assert found.value("uncensored", "mse") == pytest.approx(0, abs=1e-9) and found.value("zeros", "mse") == 0
    share = (x[3:] == 0).mean()
    threshold = np.abs(x[x != 0]).min()
    assert found.value("beyond", "mae") == pytest.approx(share * (0.75 - threshold), abs=1e-5)
    assert found.value("zeros", "pearson_delta_recorded") == pytest.approx(1)
    assert found.value("beyond", "pearson_delta_recorded") == pytest.approx(1)
    assert found.value("beyond", "pearson_delta") < 0.99
    assert found.provenance["censored_below"] == pytest.approx(threshold)
    assert found.calibrated.empty and found.ceiling.empty


def test_thirds_of_effect_size(effect):
    real = screen(np.random.default_rng(1), effect)
    found = evaluate({"model": trained(effect, 0)}, real, split_of(), ceiling_draws=2)
    rows = found.summary.query("method == 'model' and metric == 'pearson_delta'").set_index("stratum")
    weak, medium, strong = (rows.loc[name] for name in EFFECT_SIZES)
    assert weak["n"] + medium["n"] + strong["n"] == len(NAMES) - 3 and abs(weak["n"] - strong["n"]) <= 1
    assert weak["mean"] < medium["mean"] < strong["mean"]
    assert set(EFFECT_SIZES) <= set(found.calibrated["stratum"])
    table = split_of().table
    table = table.assign(part=np.where(table["condition"].isin(["P7", "P8", "P9"]), "test", "train"))
    few = evaluate({"model": trained(effect, 0)}, real, Split("few", "file", 0, table), ceiling_draws=0)
    assert not set(EFFECT_SIZES) & set(few.summary["stratum"])


def test_cells_logged_twice_are_pointed_out():
    rng = np.random.default_rng(3)
    effect = {c: 0.3 * rng.normal(size=60) for c in NAMES}
    real = screen(rng, effect)
    real.X = np.abs(real.X) + 0.5
    cells = real[(real.obs["condition"] != "control").to_numpy()].copy()
    twice = cells.copy()
    twice.X = np.log1p(twice.X)
    found = evaluate({"once": cells, "twice": twice}, real, split_of(), ceiling_draws=0).excluded
    rows = found[found["reason"].str.contains("log-transformed twice")]
    assert list(rows["method"]) == ["twice"]


def test_a_baseline_without_an_answer_keeps_its_reason(effect):
    real = screen(np.random.default_rng(1), effect)
    why = {("additive", "P9", "all"): "no training effect of the single perturbation: P9"}
    found = evaluate({"model": trained(effect, 0)}, real, split_of(), reasons=why, ceiling_draws=0)
    assert found.excluded.query("method == 'additive'")["reason"].iloc[0].endswith("perturbation: P9")
