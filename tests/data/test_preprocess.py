import copy
import importlib
import subprocess
import sys
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.sparse import csr_matrix

import scbig.data
from scbig.config import default
from scbig.data import preprocess
from scbig.data.conditions import CONTROL
from scbig.data.preprocess import dispersion_score, filter_knockdown, normalize, prepare, qc, select_genes
from scbig.data.read import read
from scbig.data.splits import load
from scbig.errors import InputError

GENES = [f"G{i:02d}" for i in range(40)]


def raw(n=400, seed=0):
    """Counts with depth variation; genes 0 to 3 are perturbed, alone and in pairs; two contexts."""
    rng = np.random.default_rng(seed)
    labels = np.array(["ctrl", "G00", "G01", "G02", "G03", "G00+G01", "G02+G03", "G01+G02"])
    condition = labels[np.arange(n) % len(labels)]
    rate = rng.gamma(1.0, 2.0, len(GENES)) * rng.lognormal(0, 0.4, (n, 1))
    rate[:, :4] = 4.0
    counts = rng.negative_binomial(2, 2 / (2 + rate)).astype(np.float32)
    counts[:, 39] += 1
    obs = pd.DataFrame({"condition": condition, "context": np.where(np.arange(n) % 16 < 8, "X", "Y")})
    obs.index = [f"c{i}" for i in range(n)]
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))


def settings(**data):
    config = default()
    config.data.n_top_genes = 12
    config.split.rule = "random"
    for name, value in data.items():
        group, name = (config.split, name[6:]) if name.startswith("split_") else (config.data, name)
        with group.unlocked():
            group[name] = value
    return config


def same(a, b):
    return (a.X != b.X).nnz == 0 and a.obs.astype(str).equals(b.obs.astype(str)) and a.var.equals(b.var)


def test_qc_keeps_perturbed_genes_and_agrees_with_scanpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc
    adata = read(raw())
    seen = np.asarray((adata.X > 0).sum(axis=0)).ravel()
    floor = int(np.sort(seen)[20])
    out = qc(adata, min_genes=28, min_cells_per_gene=floor)
    want = adata.copy()
    sc.pp.filter_cells(want, min_genes=28)
    kept = sc.pp.filter_genes(want, min_cells=floor, inplace=False)[0] | want.var_names.isin(GENES[:4])
    assert list(out.obs_names) == list(want.obs_names) and list(out.var_names) == list(want.var_names[kept])
    assert 0 < out.n_obs < adata.n_obs and out.n_vars < adata.n_vars and set(GENES[:4]) <= set(out.var_names)
    assert set(GENES[:4]) <= set(qc(adata, min_cells_per_gene=395).var_names)
    assert set(GENES[:4]) - set(qc(adata, min_cells_per_gene=395, targets="none").var_names)
    # Reading with the same limits is the same thing.
    assert (read(raw(), min_genes=28, min_cells_per_gene=floor).X != out.X).nnz == 0


def test_qc_never_loses_a_condition():
    adata = read(raw())
    dense = adata.X.toarray()
    dense[(adata.obs["condition"] == "G03").to_numpy(), :30] = 0
    adata.X = csr_matrix(dense)
    with pytest.raises(InputError, match=r"1 conditions have fewer than 1 cells: G03 \(0\)"):
        qc(adata, min_genes=15)


def test_normalize_by_total_is_that_of_scanpy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc
    adata = read(raw())
    for target in ("median", 1e4, "1e4"):
        out = normalize(adata, target_sum=target)
        want = ad.AnnData(adata.layers["counts"].copy())
        sc.pp.normalize_total(want, target_sum=None if target == "median" else 1e4)
        sc.pp.log1p(want)
        np.testing.assert_allclose(out.X.toarray(), want.X.toarray(), rtol=2e-6)
        assert out.X.dtype == np.float32 and isinstance(out.X, sp.csr_matrix)
        marks = out.uns["scbig"]
        assert marks["normalization"] == ("median" if target == "median" else "1e4")
        assert marks["size_factor"] == "total" and marks["kind"] == "screen"
    assert adata.uns["scbig"]["normalization"] == "counts" and (adata.X != adata.layers["counts"]).nnz == 0


def test_normalize_by_column_and_again(monkeypatch):
    monkeypatch.setattr(preprocess, "_ROWS", 7)
    adata = raw()
    adata.obs["depth"] = np.random.default_rng(1).integers(100, 900, adata.n_obs)
    out = normalize(read(adata, size_factor="depth"))
    depth = adata.obs["depth"].to_numpy()[:, None]
    np.testing.assert_allclose(out.X.toarray(), np.log1p(adata.X.toarray() / depth * np.median(depth)), rtol=1e-5)
    assert out.uns["scbig"]["size_factor"] == "depth" and out.uns["scbig"]["target_sum"] == np.median(depth)
    # The depth stays that of the whole cell after genes were dropped.
    again = normalize(out[:, :10].copy())
    np.testing.assert_allclose(again.X.toarray(), out.X.toarray()[:, :10], rtol=1e-6)


def test_normalize_refusals():
    adata = read(raw())
    with pytest.raises(InputError, match="no column 'umis'"):
        normalize(adata, "umis")
    with pytest.raises(InputError, match="target_sum=-3 is neither"):
        normalize(adata, target_sum=-3)
    with pytest.raises(InputError, match="target_sum=middle is neither"):
        normalize(adata, target_sum="middle")
    adata.obs["size_factor"] = adata.obs["size_factor"].where(adata.obs_names != "c3", 0)
    with pytest.raises(InputError, match="1 cells have no counts or no size factor: c3"):
        normalize(adata)
    del adata.layers["counts"]
    with pytest.raises(InputError, match="needs layers"):
        normalize(adata)


def test_given_normalisation_is_left_alone():
    adata = raw()
    adata.X = adata.X.log1p()
    adata = read(adata, normalized=True)
    assert normalize(adata) is adata


@pytest.mark.parametrize("seed", range(4))
def test_variable_genes_are_those_of_scanpy(seed, monkeypatch):
    monkeypatch.setattr(preprocess, "_ROWS", 53)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc
    rng = np.random.default_rng(seed)
    counts = rng.negative_binomial(1, 1 / (1 + rng.gamma(0.5, 2.0, 300)), (500, 300)).astype(np.float32)
    counts[:, 7] = 0
    adata = ad.AnnData(csr_matrix(np.log1p(counts / (1 + counts.sum(axis=1, keepdims=True)) * 300)))
    train = rng.random(500) < 0.7
    subset = adata[train].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.highly_variable_genes(subset, flavor="seurat", n_top_genes=60)
    score = dispersion_score(adata.X, train)
    want = subset.var["dispersions_norm"].to_numpy()
    np.testing.assert_array_equal(np.isnan(score), np.isnan(want))
    np.testing.assert_allclose(score, want, rtol=2e-3, atol=2e-3)  # scanpy's moments are float32
    mine = set(np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")[:60])
    assert len(mine & set(np.flatnonzero(subset.var["highly_variable"]))) >= 59


def test_genes_are_chosen_on_training_cells_only():
    adata = normalize(read(raw()))
    train = np.arange(adata.n_obs) % 3 > 0
    out = select_genes(adata, train, 10)
    assert out.var["highly_variable"].sum() == 10 and list(out.var_names[out.var["is_target"]]) == GENES[:4]
    assert (out.var["highly_variable"] | out.var["is_target"]).all()
    assert list(out.var_names) == [g for g in GENES if g in set(out.var_names)]
    assert out.uns["scbig"]["genes_chosen_on"] == f"{train.sum()} training cells"
    other = adata.copy()
    values = other.X.toarray()
    values[~train] = np.random.default_rng(0).permuted(values[~train] * 3, axis=1)
    other.X = csr_matrix(values)
    assert list(select_genes(other, train, 10).var_names) == list(out.var_names)
    assert list(select_genes(other, ~train, 10).var_names) != list(out.var_names)
    assert select_genes(adata, train, None).n_vars == select_genes(adata, train, 0).n_vars == 40
    with pytest.raises(InputError, match="no training cells"):
        select_genes(adata, np.zeros(adata.n_obs, dtype=bool), 10)


def test_missing_targets():
    adata = normalize(read(raw())[:, 2:].copy())
    train = np.ones(adata.n_obs, dtype=bool)
    with pytest.raises(InputError, match=r"2 of 4 perturbed genes .*: G00, G01: .*allow_missing_targets=True"):
        select_genes(adata, train, 10)
    out = select_genes(adata, train, 10, allow_missing_targets=True)
    assert list(out.uns["scbig"]["missing_targets"]) == ["G00", "G01"]
    assert list(out.var_names[out.var["is_target"]]) == ["G02", "G03"]
    out = select_genes(adata, train, 10, targets="none")
    assert not out.var["is_target"].any() and out.n_vars == 10


@pytest.mark.parametrize("direction", ["down", "up"])
def test_knockdown_filter(direction):
    adata = normalize(read(raw()))
    out = filter_knockdown(adata, direction, min_change=0.1)
    values, obs = adata.to_df(), adata.obs
    keep = []
    for cell, condition, context in zip(obs.index, obs["condition"], obs["context"], strict=True):
        controls = values[(obs["condition"] == CONTROL) & (obs["context"] == context)]
        change = [values.loc[cell, g] - controls[g].mean() for g in condition.split("+") if g in GENES]
        keep.append(all((c if direction == "up" else -c) > 0.1 for c in change))
    assert list(out.obs_names) == list(obs.index[keep]) and 0 < len(out) < len(adata)
    assert (out.obs["condition"] == CONTROL).sum() == (obs["condition"] == CONTROL).sum()
    found = out.uns["scbig"]["knockdown"]
    assert found["cells_before"] - found["cells_after"] == found["cells_dropped"].sum() == len(adata) - len(out)
    assert CONTROL not in found["conditions"]


def test_knockdown_refusals():
    adata = normalize(read(raw()))
    with pytest.raises(InputError, match=r"G00 \(0\)"):
        filter_knockdown(adata, "down", min_change=50.0)
    adata = adata[~((adata.obs["condition"] == CONTROL) & (adata.obs["context"] == "Y"))].copy()
    with pytest.raises(InputError, match="no control cells in the context Y"):
        filter_knockdown(adata)


def test_prepare_and_files(tmp_path):
    path = tmp_path / "raw.h5ad"
    raw().write_h5ad(path)
    adata, split = prepare(None, settings(path=str(path)))
    again, split_again = prepare(raw(), settings())
    assert same(adata, again) and split.sha256 == split_again.sha256
    marks = adata.uns["scbig"]
    assert (marks["split"], marks["split_sha256"]) == (split.name, split.sha256)
    assert {"condition", "context", "batch", "size_factor"} <= set(adata.obs)
    train = split.assign(adata.obs) == "train"
    assert marks["genes_chosen_on"] == f"{train.sum()} training cells" and 12 <= adata.n_vars <= 16
    # Everything survives writing, and what comes back is taken as it is.
    adata.write_h5ad(tmp_path / "prepared.h5ad")
    back = read(tmp_path / "prepared.h5ad")
    np.testing.assert_array_equal(back.X.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(back.layers["counts"].toarray(), adata.layers["counts"].toarray())
    assert back.uns["scbig"]["target_sum"] == marks["target_sum"]
    assert (split.assign(back.obs) == split.assign(adata.obs)).all()
    with pytest.raises(InputError, match=r"prepared.h5ad is already prepared, for the split 'random-0'"):
        prepare(tmp_path / "prepared.h5ad", settings())
    split.save(tmp_path / "split.csv")
    reused, same_split = prepare(path, settings(split_path=str(tmp_path / "split.csv")))
    assert same(reused, adata) and same_split.sha256 == load(tmp_path / "split.csv").sha256


def test_prepare_leaves_its_input_alone():
    adata = raw()
    canonical = read(adata)
    uns, x = copy.deepcopy(canonical.uns["scbig"]), canonical.X.copy()
    first, _ = prepare(canonical, settings(min_genes=25))
    assert canonical.uns["scbig"].keys() == uns.keys() and (canonical.X != x).nnz == 0
    second, _ = prepare(adata, settings(min_genes=25))
    assert same(first, second) and first.n_obs < adata.n_obs


def test_prepare_heeds_the_depth_of_canonical_input():
    adata = raw()
    adata.obs["depth"] = np.random.default_rng(1).integers(100, 900, adata.n_obs)
    first, _ = prepare(adata, settings(size_factor="depth"))
    second, _ = prepare(read(adata), settings(size_factor="depth"))
    np.testing.assert_array_equal(first.X.toarray(), second.X.toarray())
    assert second.uns["scbig"]["size_factor"] == "depth"


def test_prepare_with_knockdown_and_cells():
    adata, split = prepare(raw(), settings(knockdown="down", split_rule="cells", split_val_fraction=0.0))
    assert len(split.table) == adata.n_obs == adata.uns["scbig"]["knockdown"]["cells_after"]
    assert set(split.assign(adata.obs)) == {"train", "test"}
    with pytest.raises(InputError, match=r"fewer than 49 cells"):
        prepare(raw(), settings(knockdown="down", min_cells=49))


def test_prepare_drugs():
    adata = raw()
    adata.obs["condition"] = adata.obs["condition"].map(
        lambda c: {"ctrl": "DMSO", "G00": "Trametinib", "G01": "Nutlin-3"}.get(c, "JQ1")
    )
    adata.obs["uM"] = np.where(adata.obs["condition"] == "DMSO", 0.0, 1.0)
    config = settings(dose="uM", condition="condition", split_rule="cells", n_top_genes=0)
    out, _ = prepare(adata, config)
    assert "dose" in out.obs and not out.var["is_target"].any() and out.n_vars == 40
    adata.obs["condition"] = adata.obs["condition"].astype(str).replace("DMSO", "solvent,water")
    out, _ = prepare(adata, settings(dose="uM", control="solvent*,none", split_rule="cells", n_top_genes=0))
    assert (out.obs["condition"] == CONTROL).sum() == 50


def test_prepare_refusals():
    with pytest.raises(InputError, match=r"--config.data.path=FILE"):
        prepare(None, settings())
    with pytest.raises(InputError, match="targets=drugs is neither"):
        prepare(raw(), settings(targets="drugs"))
    with pytest.raises(InputError, match="knockdown=sideways is neither"):
        prepare(raw(), settings(knockdown="sideways"))
    with pytest.raises(InputError, match="'nonsense' is not a split rule"):
        prepare(raw(), settings(split_rule="nonsense"))


def test_functions_win_over_modules_of_the_same_name():
    importlib.import_module("scbig.data.read")
    importlib.import_module("scbig.data.simulate")
    assert callable(scbig.data.read) and callable(scbig.data.simulate)
    assert scbig.data.prepare is prepare


def test_importing_is_light():
    heavy = ("scanpy", "ott", "cell_eval", "pooch", "matplotlib", "rich")
    code = f"import sys, scbig.data; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.realdata
def test_real_screens(shared):
    config = settings(
        path=str(shared / "data" / "papalexi2021_thp1.h5ad"),
        size_factor="n_umis",
        batch="bio_rep",
        n_top_genes=0,
        split_rule="cells",
    )
    with pytest.raises(InputError, match="16 of 25 perturbed genes are not among the genes measured: ATF2, BRD4"):
        prepare(None, config)
    config.data.allow_missing_targets = True
    adata, split = prepare(None, config)
    assert adata.shape == (20729, 303) and adata.var["is_target"].sum() == 9
    # The yardstick in the data's description, rounded as it is there.
    dense = adata.X.toarray()
    assert round(float(dense.var(axis=0).mean()), 3) == 0.125
    kang = settings(
        path=str(shared / "data" / "kang2018_pbmc.h5ad"),
        normalized=True,
        context="cell_type",
        targets="none",
        n_top_genes=2000,
        split_rule="context",
        split_held_out_context="CD4T",
    )
    adata, split = prepare(None, kang)
    assert adata.n_vars == 2000 and split.conditions("test") == ["stimulated"]
    held = split.assign(adata.obs) == "test"
    assert set(adata.obs["context"][held]) == {"CD4T"}
