"""Text of every pandas and anndata is read, and written so that older versions read it."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scbig import data
from scbig.data.store import open_store
from scbig.data.text import plain_text, portable


def screen(n=60):
    counts = np.random.default_rng(0).poisson(1.5, (n, 4)).astype(np.float32)
    counts[:, 3] += 1
    labels = {"perturbation": ["ctrl", "KLF1", "STAT1"], "line": ["K562", "RPE1", "K562"]}
    obs = pd.DataFrame({name: pd.Categorical(each * (n // 3)) for name, each in labels.items()})
    obs.index = [f"cell{i}" for i in range(n)]
    return ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=["STAT1", "KLF1", "GAPDH", "ACTB"]))


def nullable(adata):
    """The same with text as anndata 0.13 and pandas 3 leave it to others: names, categories and columns."""
    out = adata.copy()
    out.obs["note"] = pd.array(["x", None, "NA"] * (adata.n_obs // 3), dtype="string")
    for name in ("perturbation", "line"):
        column = out.obs[name]
        out.obs[name] = column.cat.rename_categories(column.cat.categories.astype("string"))
    out.obs_names, out.var_names = out.obs_names.astype("string"), out.var_names.astype("string")
    return out


def encodings(file):
    found = {}
    with h5py.File(file) as store:
        store.visititems(lambda name, item: found.update({name: item.attrs.get("encoding-type", "")}))
    return found


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_file_of_nullable_text_is_that_of_plain_text(tmp_path, suffix):
    plain = screen()
    with ad.settings.override(allow_write_nullable_strings=True):
        file = tmp_path / f"nullable{suffix}"
        (nullable(plain).write_zarr if suffix == ".zarr" else nullable(plain).write_h5ad)(file)
    back, told = data.read(file), data.read(plain)
    assert back.obs.drop(columns="note").equals(told.obs) and list(back.var_names) == list(told.var_names)
    assert back.obs["note"].isna().tolist() == [False, True, False] * 20 and back.obs["note"].iloc[2] == "NA"
    with portable():
        back.write_h5ad(tmp_path / "again.h5ad")
    assert not {name for name, kind in encodings(tmp_path / "again.h5ad").items() if kind.startswith("nullable")}
    again = ad.read_h5ad(tmp_path / "again.h5ad")
    assert list(again.obs_names) == list(plain.obs_names) and again.obs["note"].isna().sum() == 20


def test_memory_is_read_as_files_are():
    assert data.read(nullable(screen())).obs["condition"].equals(data.read(screen()).obs["condition"])


def test_plain_text_changes_nothing_else():
    table = pd.DataFrame({"a": [1.0, np.nan], "b": pd.Categorical(["x", None]), "c": [True, False]}, index=["u", "v"])
    pd.testing.assert_frame_equal(plain_text(table), table)


def test_a_prepared_screen_that_was_written_again_with_nullable_text_is_opened(tiny_run, tmp_path):
    adata = ad.read_h5ad(tiny_run / "prepared.h5ad")
    names = adata.obs_names.tolist()
    adata.obs_names = adata.obs_names.astype("string")
    with ad.settings.override(allow_write_nullable_strings=True):
        adata.write_h5ad(tmp_path / "prepared.h5ad")
    assert encodings(tmp_path / "prepared.h5ad")["obs/_index"] == "nullable-string-array"
    with open_store(tmp_path / "prepared.h5ad") as store:
        assert list(store.names()) == names and list(store.obs["condition"]) == list(adata.obs["condition"])


def test_what_a_run_writes_is_plain(tiny_run):
    written = [file for file in tiny_run.rglob("*.h5ad") if "simulated" not in file.parts]
    assert {file.name for file in written} >= {"prepared.h5ad", "test.h5ad"}
    for file in written:
        assert "string-array" in encodings(file).values()
        assert not [name for name, kind in encodings(file).items() if kind.startswith("nullable")], file
