"""Rows on disk are those of the matrix; what is damaged or gone is refused, and no more than a block is ever held."""

import shutil

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

from scbig.data.latents import read_latents, write_latents
from scbig.data.store import Rows, column_sums, open_store
from scbig.errors import InputError

CELLS, GENES = 300, 40


@pytest.fixture(scope="module")
def screen():
    x = sp.random(CELLS, GENES, 0.3, "csr", np.float32, random_state=np.random.default_rng(0))
    obs = pd.DataFrame({"condition": pd.Categorical(["control", "A", "B"] * (CELLS // 3))})
    obs.index = [f"cell {i}" for i in range(CELLS)]
    var = pd.DataFrame(index=[f"g{i}" for i in range(GENES)])
    adata = ad.AnnData(x, obs=obs, var=var, uns={"scbig": {"split": "s"}, "other": np.ones(3)})
    adata.layers["counts"] = x.copy()
    return adata


@pytest.fixture(scope="module")
def h5ad(screen, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "prepared.h5ad"
    screen.write_h5ad(path, compression="lzf")
    return path


@pytest.fixture
def sharded(screen, tmp_path):
    """The screen as zarr format 3 with several shards in each array of X."""
    path = tmp_path / "prepared.zarr"
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(group, "/", screen)
    for name in ("data", "indices"):
        values = group["X"][name][...]
        group["X"].create_array(name, data=values, chunks=(256,), shards=(1024,), overwrite=True)
    return path


def same(found, expected):
    assert found.dtype == np.float32 and found.has_canonical_format
    np.testing.assert_array_equal(found.toarray(), expected.toarray())


@pytest.mark.parametrize("kind", ["h5ad", "sharded", "memory"])
def test_rows_are_those_of_the_matrix(kind, screen, request):
    x = screen.X
    mask = np.random.default_rng(1).random(CELLS) < 0.4
    places = np.array([7, 3, 299, 3, 120])

    def check(rows):
        assert rows.shape == x.shape
        same(rows[10:57], x[10:57])
        same(rows[290:900], x[290:])
        same(rows[5:5], x[5:5])
        same(rows[mask], x[mask])
        same(rows[places], x[places])
        same(sp.vstack(list(rows.blocks(64))), x)
        some = rows.chosen(mask)
        same(some[0 : len(some)], x[mask])
        same(some[3:9], x[mask][3:9])
        same(some[places[:2]], x[mask][places[:2]])
        same(some.chosen(np.array([0, 5]))[0:2], x[mask][[0, 5]])
        np.testing.assert_array_equal(some.nnz, np.diff(x[mask].indptr))
        np.testing.assert_allclose(column_sums(some, 50), x[mask].toarray().sum(axis=0, dtype=np.float64), rtol=1e-9)

    if kind == "memory":
        check(Rows.of(x))
        check(Rows.of(x.toarray()))
        return
    with open_store(request.getfixturevalue(kind)) as store:
        check(store.X)
        pd.testing.assert_frame_equal(store.obs.set_axis(store.names()), screen.obs)
        assert list(store.var_names) == list(screen.var_names) and store.uns == {"scbig": {"split": "s"}}
        assert [block.shape[0] for block in store.X.blocks(128)] == [128, 128, CELLS - 256]
        same(store.X[4:9], x[4:9])


def test_nothing_is_read_before_it_is_asked_for_and_then_only_that(h5ad, screen, monkeypatch):
    """The memory held is what is read: values are counted where they leave the file."""
    read = []
    original = h5py.Dataset.__getitem__

    def counted(self, key, *args, **kwargs):
        found = original(self, key, *args, **kwargs)
        if self.name in ("/X/data", "/layers/counts/data"):
            read.append((self.name, np.size(found)))
        return found

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    with open_store(h5ad) as store:
        assert read == []
        for _ in store.X.blocks(50):
            assert len(read) == 1
            name, size = read.pop()
            assert name == "/X/data" and size < 0.25 * screen.X.nnz
        store.X[np.array([17, 18])]
    assert read == [("/X/data", screen.X[17:19].nnz)]


def test_a_truncated_file_is_refused(h5ad, tmp_path):
    short = tmp_path / "short.h5ad"
    short.write_bytes(h5ad.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"short\.h5ad is truncated or damaged"), open_store(short):
        pass
    with pytest.raises(InputError, match=r"no prepared screen .*absent\.h5ad"), open_store(tmp_path / "absent.h5ad"):
        pass


@pytest.mark.parametrize("harm", ["genes", "twice", "chunk", "dense", "indptr"])
def test_damage_inside_the_file_is_told(harm, h5ad, tmp_path):
    path = shutil.copy(h5ad, tmp_path / "harmed.h5ad")
    with h5py.File(path, "r+") as file:
        x = file["X"]
        if harm == "genes":
            x["indices"][5] = GENES
        elif harm == "twice":
            x["indices"][:2] = 3
        elif harm == "chunk":
            # Half of a compressed chunk gone, as by a failing disk.
            where = x["data"].id.get_chunk_info(0)
            offset = where.byte_offset
        elif harm == "dense":
            x.attrs["encoding-type"] = "csc_matrix"
        else:
            x["indptr"][3] = 10**6
    if harm == "chunk":
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(b"\xff" * 512)
    says = {"dense": "stored as csc_matrix", "twice": "stands twice", "indptr": "do not fit together"}
    with pytest.raises(InputError, match=says.get(harm, "truncated or damaged")) as told, open_store(path) as store:
        for _ in store.X.blocks(100):
            pass
    assert "harmed.h5ad" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["data", "indices"])
def test_a_shard_that_is_gone_is_refused_and_not_read_as_zeros(name, sharded):
    gone = sharded / "X" / name / "c" / "1"
    gone.unlink()
    with pytest.raises(InputError, match=rf"{gone} is gone"), open_store(sharded):
        pass


def test_a_truncated_shard_is_refused(sharded):
    shard = sharded / "X/data/c/1"
    shard.write_bytes(shard.read_bytes()[:-40])
    with pytest.raises(InputError, match=r"prepared\.zarr is truncated or damaged"), open_store(sharded) as store:
        store.X[0:CELLS]


def test_latents_in_blocks_are_an_anndata(tmp_path, monkeypatch):
    monkeypatch.setattr("scbig.data.latents._CHUNK", 16)
    monkeypatch.setattr("scbig.data.latents._SHARD", 64)
    z = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    z[64:128] = 0.0  # a shard of nothing but zeros is written all the same
    obs = pd.DataFrame({"condition": pd.Categorical(["A"] * 150)}, index=[f"c{i}" for i in range(150)])
    write_latents(tmp_path / "z.zarr", obs, (z[i : i + 37] for i in range(0, 150, 37)), 5)
    found = ad.read_zarr(tmp_path / "z.zarr")
    np.testing.assert_array_equal(found.X, z)
    pd.testing.assert_frame_equal(found.obs, obs)
    assert zarr.open_group(str(tmp_path / "z.zarr"), mode="r")["X"].shards == (64, 5)
    read = read_latents(tmp_path / "z.zarr")
    np.testing.assert_array_equal(read, z)
    assert read.ctypes.data % 64 == 0
    with pytest.raises(ValueError, match="latents of 10 cells for a table of 150"):
        write_latents(tmp_path / "short.zarr", obs, [z[:10]], 5)
    assert not (tmp_path / "short.zarr").exists()
    (tmp_path / "z.zarr/X/c/1/0").unlink()
    with pytest.raises(InputError, match="is gone"):
        read_latents(tmp_path / "z.zarr")
