"""``scbig evaluate --predictions``: any tool's cells or effects, seeds, and every kind of bad input in one line."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scbig import cli
from scbig.data.splits import Split
from scbig.files import digest

SINGLES = [f"G{i:02}" for i in range(12)]
PAIRS = [f"G{i:02}+G{i + 1:02}" for i in range(0, 12, 2)]
GENES = [*SINGLES, *(f"m{i}" for i in range(40))]


@pytest.fixture
def call(capsys):
    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def table_of(effects: dict[str, np.ndarray], kind: str | None = "effects") -> ad.AnnData:
    obs = pd.DataFrame({"condition": list(effects)}, index=list(effects))
    out = ad.AnnData(np.stack(list(effects.values())).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))
    if kind:
        out.uns["scbig"] = {"kind": kind}
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen of cells, its effects, a split, and predictions of either kind."""
    rng = np.random.default_rng(0)
    where = tmp_path_factory.mktemp("judge")
    effect = {g: rng.normal(0, 0.6, len(GENES)) for g in SINGLES}
    effect |= {p: effect[p[:3]] + effect[p[4:]] + rng.normal(0, 0.2, len(GENES)) for p in PAIRS}
    base = rng.normal(0.5, 0.4, len(GENES))
    blocks = {c: np.exp(base + effect.get(c, 0.0)) for c in ("control", *effect)}
    size = dict.fromkeys(blocks, 40) | {"control": 150}
    x = np.concatenate([np.log1p(rng.poisson(3 * m, (size[c], len(GENES)))) for c, m in blocks.items()])
    obs = pd.DataFrame({"condition": [c for c in blocks for _ in range(size[c])]})
    obs.index = [f"c{i}" for i in range(len(obs))]
    screen = ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=GENES))
    screen.uns["scbig"] = {"schema": 1, "kind": "screen", "normalization": "given"}
    screen.write_h5ad(where / "screen.h5ad")
    table_of(effect, None).write_h5ad(where / "effects.h5ad")
    rows = [(c, "test" if "+" in c else "train", "") for c in effect]
    Split("made", "additive", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"])).save(where / "split.csv")
    for seed in range(2):
        noisy = {p: effect[p] + rng.normal(0, 0.3, len(GENES)) for p in PAIRS}
        table_of(noisy).write_h5ad(where / f"seed{seed}.h5ad")
    cells = screen[screen.obs["condition"].isin(PAIRS).to_numpy()].copy()
    cells.uns["scbig"] = {"kind": "cells"}
    cells.write_h5ad(where / "cells.h5ad")
    return where


def arguments(folder, out, *predictions, data="screen.h5ad", split="split.csv"):
    given = [part for p in predictions for part in ("--predictions", p)]
    more = ["--effects"] if data == "effects.h5ad" else ["--config.data.normalized=True"]
    return ["evaluate", *given, "--data", folder / data, "--split", folder / split, "--out", out, *more]


def summary(out, method, metric, field="mean"):
    rows = json.loads((out / "summary.json").read_text())["summary"]
    (row,) = [r for r in rows if (r["method"], r["metric"], r["stratum"]) == (method, metric, "all")]
    return row[field]


def test_cells_and_effects_of_several_methods_beside_each_other(call, folder, tmp_path):
    out = tmp_path / "judged"
    code, said, err = call(*arguments(folder, out, f"copy={folder}/cells.h5ad", f"noisy={folder}/seed0.h5ad"))
    assert code == 0, err
    assert {p.name for p in out.iterdir()} == {
        "report.html", "summary.json", "per_condition.csv", "ceilings.csv", "effects.npz"
    }  # fmt: skip
    assert summary(out, "copy", "pearson_delta") == pytest.approx(1)
    assert 0.3 < summary(out, "noisy", "pearson_delta") < 1 and summary(out, "noisy", "e_distance") is not None
    assert "calibrated" in said and "additive" in said and "shuffled" in said
    tidy = pd.read_csv(out / "per_condition.csv")
    assert list(tidy) == ["method", "condition", "context", "stratum", "metric", "value"]
    assert tidy.groupby(["method", "condition", "metric"]).size().max() == 1


def test_a_table_of_effects_is_judged_too(call, folder, tmp_path):
    out = tmp_path / "judged"
    code, said, err = call(*arguments(folder, out, f"noisy={folder}/seed0.h5ad", data="effects.h5ad"))
    assert code == 0, err
    assert summary(out, "noisy", "pearson_delta") > 0.7 and summary(out, "additive", "pearson_delta") > 0.9
    assert "calibrated" not in said  # no cells, no ceiling


def test_a_table_that_does_not_say_what_it_is_gets_a_hint(call, folder, tmp_path):
    given = arguments(folder, tmp_path / "out", folder / "seed0.h5ad", data="effects.h5ad")
    given.remove("--effects")
    code, _, err = call(*given)
    assert code == 2 and "--effects" in err and len(err.splitlines()) == 1


def test_files_of_one_name_are_seeds(call, folder, tmp_path):
    out = tmp_path / "judged"
    both = [f"model={folder}/seed{i}.h5ad" for i in range(2)]
    assert call(*arguments(folder, out, *both, data="effects.h5ad"))[0] == 0
    alone = []
    for i in range(2):
        assert call(*arguments(folder, tmp_path / f"{i}", both[i], data="effects.h5ad"))[0] == 0
        alone.append(summary(tmp_path / f"{i}", "model", "pearson_delta"))
    assert summary(out, "model", "pearson_delta") == pytest.approx(np.mean(alone))
    assert summary(out, "model", "pearson_delta", "n_seeds") == 2
    assert summary(out, "model", "pearson_delta", "seed_sd") == pytest.approx(np.std(alone, ddof=1))


def test_predictions_of_one_name_without_being_told_are_refused(call, folder, tmp_path):
    twin = tmp_path / "seed0.h5ad"
    twin.write_bytes((folder / "seed0.h5ad").read_bytes())
    code, _, err = call(*arguments(folder, tmp_path / "out", folder / "seed0.h5ad", twin))
    assert code == 2 and "two predictions are called seed0" in err and len(err.splitlines()) == 1


def test_predictions_that_do_not_say_what_they_are(call, folder, tmp_path):
    table = ad.read_h5ad(folder / "seed0.h5ad")
    del table.uns["scbig"]
    table.write_h5ad(tmp_path / "plain.h5ad")
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(zarr.open_group(str(tmp_path / "plain.zarr"), mode="w", zarr_format=3), "/", table)
    given = arguments(folder, tmp_path / "out", tmp_path / "plain.h5ad", data="effects.h5ad")
    code, _, err = call(*given)
    assert code == 2 and "'plain' do not say whether they are cells or effects" in err
    assert call(*given, "--kind", "effects")[0] == 0
    assert summary(tmp_path / "out", "plain", "pearson_delta") > 0.7
    given = arguments(folder, tmp_path / "zarr", tmp_path / "plain.zarr", data="effects.h5ad")
    assert call(*given, "--kind", "effects")[0] == 0
    means = [summary(tmp_path / name, "plain", "pearson_delta") for name in ("out", "zarr")]
    assert means[0] == pytest.approx(means[1])


def test_a_ceiling_can_be_left_out(call, folder, tmp_path):
    given = arguments(folder, tmp_path / "out", folder / "seed0.h5ad")
    assert call(*given, "--config.evaluation.ceiling_draws=0")[0] == 0
    assert json.loads((tmp_path / "out/summary.json").read_text())["calibrated"] == []


def spoilt(folder, tmp_path, change):
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells = change(cells)
    cells.write_h5ad(tmp_path / "bad.h5ad")
    return tmp_path / "bad.h5ad"


def counts(cells):
    cells.X = cells.X.expm1()
    cells.X.data = np.round(cells.X.data)
    return cells


def others(cells):
    cells.obs["condition"] = "SOX2"
    return cells


def two_kinds(cells):
    cells.uns["scbig"] = {"kind": "pictures"}
    return cells


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c[:, 3:].copy(), "'bad' lack 3 of the data's 52 genes: G00, G01, G02"),
        (counts, "'bad' hold"),
        (others, "'bad' answer no test condition; those are G00+G01"),
        (two_kinds, "'bad' do not say whether they are cells or effects"),
    ],
)
def test_bad_predictions_are_one_line_and_write_nothing(call, folder, tmp_path, change, says):
    bad = spoilt(folder, tmp_path, change)
    code, _, err = call(*arguments(folder, tmp_path / "out", bad))
    assert code == 2 and says in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_what_cannot_be_judged_is_listed(call, folder, tmp_path):
    def change(cells):
        label = cells.obs["condition"].astype(str).to_numpy()
        keep = np.ones(len(label), bool)
        keep[np.flatnonzero(label == PAIRS[0])[1:]] = False
        keep[label == PAIRS[1]] = False
        x = cells.X.toarray()
        x[np.flatnonzero(label == PAIRS[2])[0], 5] = np.nan
        cells.X = x
        return cells[keep].copy()

    out = tmp_path / "out"
    assert call(*arguments(folder, out, spoilt(folder, tmp_path, change)))[0] == 0
    told = json.loads((out / "summary.json").read_text())["excluded"]
    rows = {r["condition"]: r["reason"] for r in told if r["method"] == "bad"}
    assert "1 predicted cell, at least 10" in rows[PAIRS[0]] and rows[PAIRS[1]] == "not predicted"
    assert "NaN" in rows[PAIRS[2]]
    page = (out / "report.html").read_text()
    assert "not predicted" in page and "at least 10 are needed" in page


def test_damaged_files_and_leaking_splits_are_refused(call, folder, tmp_path):
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes((folder / "cells.h5ad").read_bytes()[:2000])
    code, _, err = call(*arguments(folder, tmp_path / "out", broken))
    assert code == 2 and "broken.h5ad cannot be read as" in err and len(err.splitlines()) == 1
    text = (folder / "split.csv").read_text()
    (tmp_path / "leak.csv").write_text(text + f"{PAIRS[0]},train,\n")
    given = arguments(folder, tmp_path / "out", folder / "cells.h5ad")
    given[given.index(folder / "split.csv")] = tmp_path / "leak.csv"
    code, _, err = call(*given)
    assert code == 2 and len(err.splitlines()) == 1 and ("leak.csv" in err or PAIRS[0] in err)
    assert not (tmp_path / "out").exists()


def test_an_earlier_evaluation_is_not_overwritten(call, folder, tmp_path):
    given = arguments(folder, tmp_path / "out", folder / "seed0.h5ad", data="effects.h5ad")
    assert call(*given)[0] == 0
    before = digest(tmp_path / "out")
    code, _, err = call(*given)
    assert code == 2 and "--force" in err and digest(tmp_path / "out") == before
    assert call(*given, "--force")[0] == 0
