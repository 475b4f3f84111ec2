"""Preparation by blocks on Dask workers gives what preparation in memory gives, and refuses what it refuses."""

import importlib
import shutil
import threading
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import workers
from scbig.config import default
from scbig.data import large, rows
from scbig.data.preprocess import choose_genes, prepare
from scbig.data.read import read
from scbig.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
    pytest.mark.filterwarnings("ignore:(Observation|Variable) names are not unique:UserWarning"),
]

GENES = [f"G{i:02d}" for i in range(40)]
LABELS = np.array(["ctrl", "G00", "G01", "G02", "G03", "G00+G01", "G02+G03", "G01+G02"])


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One local cluster for all tests here."""
    with workers.local(threads=2) as client:
        yield client


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(rows, "_ENTRIES", 1)  # blocks of 64 rows
    monkeypatch.setattr(rows, "_DENSE", 1)


def raw(n=400, seed=0):
    rng = np.random.default_rng(seed)
    rate = rng.gamma(1.0, 2.0, len(GENES)) * rng.lognormal(0, 0.4, (n, 1))
    rate[:, :4] = 4.0
    counts = rng.negative_binomial(2, 2 / (2 + rate)).astype(np.float32)
    counts[:, 39] += 1
    counts[:70, 20:39] = 0  # so that floors drop most of the first block
    obs = pd.DataFrame(
        {
            "condition": LABELS[np.arange(n) % len(LABELS)],
            "context": np.where(np.arange(n) % 16 < 8, "X", "Y"),
            "depth": rng.integers(100, 900, n),
            "uM": np.where(np.arange(n) % len(LABELS) == 0, 0.0, 1.0),
        },
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES), uns={"source": "made up"})


def settings(path, **data):
    config = default()
    config.data.path, config.data.n_top_genes, config.split.rule = str(path), 12, "random"
    for name, value in data.items():
        group, name = (config.split, name[6:]) if name.startswith("split_") else (config.data, name)
        with group.unlocked():
            group[name] = value
    return config


def write(adata, path):
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    return path


def both(config, folder):
    """The screen prepared in memory and by blocks, both as they come back from disk, and both splits."""
    in_memory, split = prepare(None, config)
    in_memory.write_h5ad(folder / "memory.h5ad")
    tables, other = large.prepare(config, folder / "dask.h5ad")
    one, two = ad.read_h5ad(folder / "memory.h5ad"), ad.read_h5ad(folder / "dask.h5ad")
    assert tables.shape == two.shape and tables.uns["scbig"].keys() == two.uns["scbig"].keys()
    return one, two, split, other


def assert_same(one, two):
    assert one.shape == two.shape and one.X.indices.dtype == two.X.indices.dtype and two.X.dtype == np.float32
    np.testing.assert_array_equal(one.X.indices, two.X.indices)
    np.testing.assert_allclose(one.X.data, two.X.data, rtol=1e-6)
    assert set(one.layers) == set(two.layers)
    for name in one.layers:
        np.testing.assert_array_equal(one.layers[name].toarray(), two.layers[name].toarray())
    pd.testing.assert_frame_equal(one.obs, two.obs)
    pd.testing.assert_frame_equal(one.var, two.var)

    def flat(table, name=""):
        if not isinstance(table, dict):
            return {name: np.asarray(table).tolist()}
        return {key: value for k, v in table.items() for key, value in flat(v, f"{name}/{k}").items()}

    assert flat(dict(one.uns)) == flat(dict(two.uns))


VARIANTS = {
    "plain": {},
    "all genes": {"n_top_genes": 0},
    "floors": {"min_genes": 15, "min_cells_per_gene": 150},
    "knockdown": {"knockdown": "down", "knockdown_min_change": 0.1, "context": "context"},
    "knockdown after floors": {"knockdown": "up", "min_genes": 15, "split_rule": "cells"},
    "size factor": {"size_factor": "depth", "target_sum": "1e4", "min_cells_per_gene": 150},
    "drugs": {"dose": "uM", "condition": "condition", "split_rule": "cells", "n_top_genes": 5},
    "layer": {"layer": "spliced"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_that_in_memory(variant, tmp_path):
    adata = raw()
    if variant == "layer":
        adata.layers["spliced"], adata.X = adata.X.copy(), adata.X * 0.5
    if variant == "drugs":
        adata.obs["condition"] = np.array(["DMSO", *(f"drug{i}" for i in range(7))])[np.arange(400) % 8]
    one, two, split, other = both(settings(write(adata, tmp_path / "s.h5ad"), **VARIANTS[variant]), tmp_path)
    assert_same(one, two)
    assert split.sha256 == other.sha256 and split.name == other.name
    dropped = variant in ("floors", "knockdown", "knockdown after floors")
    assert (two.n_obs < 400) == dropped and two.uns["source"] == "made up"


@pytest.mark.parametrize("form", ["csr", "dense", "integer", "wrong order"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_every_form_of_file(form, suffix, tmp_path):
    adata = raw()
    if form == "dense":
        adata.X = adata.X.toarray()
    elif form == "integer":
        adata.X = adata.X.astype(np.int32)
    elif form == "wrong order":
        adata.X.data[5] = 0  # stored zeros, and columns that do not rise
        for start, stop in zip(adata.X.indptr[:-1], adata.X.indptr[1:], strict=True):
            adata.X.indices[start:stop] = adata.X.indices[start:stop][::-1]
            adata.X.data[start:stop] = adata.X.data[start:stop][::-1]
        adata.X.has_sorted_indices = False
    one, two, _, _ = both(settings(write(adata, tmp_path / f"s{suffix}"), min_genes=10), tmp_path)
    assert_same(one, two)


def test_what_is_normalised_already(tmp_path):
    adata = raw()
    adata.X = adata.X.log1p()
    one, two, _, _ = both(settings(write(adata, tmp_path / "s.h5ad"), normalized=True, knockdown="down"), tmp_path)
    assert_same(one, two)
    assert "counts" not in two.layers and two.n_obs < 400


@pytest.mark.parametrize("floors", [{}, {"min_genes": 15, "min_cells_per_gene": 150}])
@pytest.mark.parametrize("normalized", [False, True])
def test_what_read_wrote(floors, normalized, tmp_path):
    adata = raw()
    adata.X = adata.X.log1p() if normalized else adata.X
    path = write(read(adata, normalized=normalized), tmp_path / "s.h5ad")
    one, two, _, _ = both(settings(path, normalized=normalized, **floors), tmp_path)
    assert_same(one, two)


def test_what_is_prepared_already_is_refused_alike(tmp_path):
    path = tmp_path / "s.h5ad"
    prepare(raw(), settings(""))[0].write_h5ad(path)
    assert "already prepared" in refused_alike(settings(path), tmp_path)


def refused_alike(config, folder):
    with pytest.raises(InputError) as told:
        prepare(None, config)
    with pytest.raises(InputError) as by_blocks:
        large.prepare(config, folder / "out.h5ad")
    assert str(by_blocks.value) == str(told.value)
    return str(told.value)


def spoilt(how):
    adata = raw()
    dense = adata.X.toarray()
    if how in ("nan", "infinite", "negative", "fraction"):
        value = {"nan": np.nan, "infinite": np.inf, "negative": -1, "fraction": 0.5}[how]
        dense[300, 3] = dense[170, 5] = dense[171, 5] = value  # in two blocks
    if how == "nan after fraction":
        dense[10, 3], dense[300, 2] = 0.5, np.nan
    if how == "empty cell":
        dense[200] = 0
    if how == "lost condition":
        dense[(adata.obs["condition"] == "G03").to_numpy(), :30] = 0
    adata.X = sp.csr_matrix(dense)
    if how in ("twice genes", "twice cells"):
        table = adata.var if how == "twice genes" else adata.obs
        names = table.index.to_numpy().astype(object)
        names[5] = names[4]
        table.index = names
    if how == "no controls":
        adata = adata[adata.obs["condition"] != "ctrl"].copy()
    if how == "target absent":
        adata = adata[:, 1:].copy()
    if how == "no context":
        adata.obs["context"] = adata.obs["context"].where(adata.obs["context"] == "X")
    return adata


@pytest.mark.parametrize(
    ("how", "options", "says"),
    [
        ("nan", {}, "3 NaN or infinite values, the first for gene 'G05' in 'c170'"),
        ("infinite", {}, "3 NaN or infinite"),
        ("negative", {}, "3 negative values"),
        ("fraction", {}, "gene 'G05' in cell 'c170' is 0.5"),
        ("nan after fraction", {}, "1 NaN"),
        ("twice genes", {}, "gene names more than once"),
        ("twice cells", {}, "cell names more than once"),
        ("no controls", {}, "no control cells"),
        ("target absent", {}, "perturbed genes are not among"),
        ("no context", {"context": "context"}, "have no context"),
        ("empty cell", {}, "no counts or no size factor: c200"),
        ("lost condition", {"min_genes": 12}, "conditions have fewer than 1 cells: G03 (0)"),
        ("", {"normalized": True}, "leave out --config.data.normalized"),
        ("", {"min_genes": 41}, "no cell has 41 genes"),
        ("", {"min_cells_per_gene": 1000, "targets": "none", "dose": "uM"}, "no gene is in 1000 cells"),
        ("", {"min_cells": 51}, "conditions have fewer than 51 cells"),
        ("", {"knockdown": "down", "min_cells": 49}, "fewer than 49 cells"),
        ("", {"knockdown": "sideways"}, "neither 'down' nor 'up'"),
        ("", {"knockdown": "down", "knockdown_min_change": 50.0}, "G00 (0)"),
        ("", {"condition": "guide"}, "no column 'guide'"),
        ("", {"size_factor": "context"}, "must hold numbers"),
        ("", {"layer": "spliced"}, "no layer 'spliced'"),
        ("", {"target_sum": "middle"}, "target_sum=middle"),
        ("", {"targets": "drugs"}, "targets=drugs"),
        ("", {"split_rule": "nonsense"}, "not a split rule"),
    ],
)
def test_every_refusal_is_that_in_memory(how, options, says, tmp_path):
    config = settings(write(spoilt(how), tmp_path / "s.h5ad"), **options)
    assert says in refused_alike(config, tmp_path)
    assert not (tmp_path / "out.h5ad").exists()


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_damaged_chunk_is_named(suffix, tmp_path):
    adata, path = raw(3000), tmp_path / f"rot{suffix}"
    if suffix == ".zarr":
        write(adata, path)
        for chunk in (path / "X" / "indices").rglob("*"):
            if chunk.is_file() and chunk.name not in (".zarray", ".zattrs", "zarr.json"):
                chunk.write_bytes(b"rubbish")
    else:
        import h5py

        adata.write_h5ad(path, compression="gzip")
        content = bytearray(path.read_bytes())
        with h5py.File(path, "r") as file:
            chunk = file["X/data"].id.get_chunk_info(0)
        content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"rot{suffix} is truncated or damaged"):
        large.prepare(settings(path), tmp_path / "out.h5ad")
    assert not (tmp_path / "out.h5ad").exists()


def test_columns_cannot_be_read_by_rows(tmp_path):
    adata = raw()
    adata.X = adata.X.tocsc()
    config = settings(write(adata, tmp_path / "s.h5ad"), backend="dask")
    with pytest.raises(InputError, match=r"s.h5ad holds X by columns \(csc_matrix\).*backend=memory"):
        large.backend(config)


def test_the_backend_is_chosen_by_size(tmp_path, cluster, monkeypatch):
    path = write(raw(), tmp_path / "s.h5ad")
    assert large.backend(settings(path))[0] == "dask"  # there are workers
    monkeypatch.setattr(workers, "current", lambda: None)
    size = raw().X.nnz * 12 / 1e9
    for limit, wanted in ((size * 1.01, "memory"), (size * 0.99, "dask")):
        assert large.backend(settings(path, memory_gb=limit)) == (wanted, pytest.approx(size))
    assert large.backend(settings(path, memory_gb=0.0, backend="memory"))[0] == "memory"
    with pytest.raises(InputError, match=r"no file .*absent.h5ad"):
        large.backend(settings(tmp_path / "absent.h5ad"))
    with pytest.raises(InputError, match="backend=disk is none of auto, memory and dask"):
        large.backend(settings(path, backend="disk"))


def test_few_blocks_are_held_at_a_time(tmp_path, monkeypatch):
    """However many blocks a screen has, results wait for the writer in a number that depends on threads alone."""
    read, append = rows.Stored.read, rows.RowWriter.append
    held, most, made, lock = set(), [0], [0], threading.Lock()

    def counted(self, start, stop):
        with lock:
            made[0] += 1
            held.add(start)
            most[0] = max(most[0], len(held))
        return read(self, start, stop)

    def taken(self, *blocks):
        append(self, *blocks)
        with lock:
            held.discard(min(held))

    def begun(*_):
        held.clear()
        most[0] = made[0] = 0

    monkeypatch.setattr(rows.Stored, "read", counted)
    monkeypatch.setattr(rows.RowWriter, "append", taken)
    monkeypatch.setattr(large, "choose_genes", lambda *given: begun() or choose_genes(*given))
    large.prepare(settings(write(raw(4000), tmp_path / "s.h5ad"), n_top_genes=0), tmp_path / "out.h5ad")
    assert made[0] == 63 and most[0] <= 5, (made, most)


def test_scanpy_on_dask_agrees(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc
    da = importlib.import_module("dask.array")
    rng = np.random.default_rng(3)
    adata = raw(800)
    counts = rng.negative_binomial(1, 1 / (1 + rng.gamma(0.5, 2.0, 300)), (800, 300)).astype(np.float32)
    adata = ad.AnnData(sp.csr_matrix(counts), obs=adata.obs[["condition"]])
    adata.var_names = [f"G{i:02d}" for i in range(300)]
    config = settings(write(adata, tmp_path / "s.h5ad"), n_top_genes=60, targets="none", dose="")
    split = large.prepare(config, tmp_path / "out.h5ad")[1]
    found = ad.read_h5ad(tmp_path / "out.h5ad")
    train = split.assign(found.obs) == "train"
    blocks = [da.from_array(adata.X[i : i + 100], chunks=(100, 300), asarray=False) for i in range(0, 800, 100)]
    lazy = ad.AnnData(da.concatenate(blocks), obs=adata.obs, var=adata.var)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.pp.normalize_total(lazy)
        sc.pp.log1p(lazy)
        on_train = lazy[train].copy()
        sc.pp.highly_variable_genes(on_train, flavor="seurat", n_top_genes=60)
    whole = sp.csr_matrix(lazy.X.compute())[:, lazy.var_names.get_indexer(found.var_names)]
    np.testing.assert_allclose(found.X.toarray(), whole.toarray(), rtol=1e-5)
    theirs = set(on_train.var_names[on_train.var["highly_variable"]])
    assert len(theirs & set(found.var_names[found.var["highly_variable"]])) >= 59


def test_memory_and_blocks_are_one_stage(tmp_path, cluster):
    """The stage writes the same file either way and leaves nothing half-written where it refuses."""
    from scbig.run import Run
    from scbig.stages.prepare import prepare as stage

    path = write(raw(), tmp_path / "s.h5ad")
    for name in ("memory", "dask"):
        remarks = {}
        stage(Run(tmp_path / name), settings(path, backend=name), remarks)
        assert remarks["backend"] == name and remarks["cells"] == 400
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == ["prepared.h5ad", "split.csv"]
    assert_same(*(ad.read_h5ad(tmp_path / name / "prepared.h5ad") for name in ("memory", "dask")))
    shutil.rmtree(tmp_path / "dask")
    write(spoilt("nan"), path)
    with pytest.raises(InputError, match="NaN"):
        stage(Run(tmp_path / "dask"), settings(path, backend="dask"), {})
    assert list((tmp_path / "dask").iterdir()) == []
