import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.sparse import csr_matrix

from scbig.data import source
from scbig.data.read import effects_table, read, report_lines
from scbig.errors import InputError

# anndata itself warns about its own coming default whenever it writes a zarr.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data:UserWarning"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding:UserWarning"),
]

GENES = ["STAT1", "KLF1", "HLA-A", "GAPDH", "ACTB", "NA"]
LABELS = ["ctrl", "STAT1+ctrl", "ctrl+KLF1", "KLF1+STAT1", "HLA-A+ctrl"]


def screen(n=60, seed=0, labels=LABELS):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(1.5, (n, len(GENES))).astype(np.float32)
    counts[:, 3] += 1
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical([labels[i % len(labels)] for i in range(n)]),
            "line": pd.Categorical(["K562" if i % 3 else "RPE1" for i in range(n)]),
            "depth": rng.integers(500, 900, n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    adata = ad.AnnData(csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES))
    adata.uns |= {"source": "made up", "simulated_cells": True, "junk": {"a": np.arange(3)}}
    return adata


def write(adata, path):
    (adata.write_zarr if path.suffix == ".zarr" else adata.write_h5ad)(path)
    return path


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "integer", "backed csr", "backed dense", "backed csc"])
def test_every_form_reads_the_same(tmp_path, suffix, form, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 1)  # blocks of 64 rows
    adata = screen(n=200)
    truth = adata.X.toarray()
    adata.X = {
        "csc": adata.X.tocsc(),
        "dense": truth,
        "integer": adata.X.astype(np.int32),
    }.get(form.removeprefix("backed "), adata.X)
    path = write(adata, tmp_path / f"screen{suffix}")
    back = read(path, context="line", backed=form.startswith("backed"))
    assert back.X.dtype == np.float32 and isinstance(back.X, sp.csr_matrix)
    np.testing.assert_array_equal(back.X.toarray(), truth)
    np.testing.assert_array_equal(back.layers["counts"].toarray(), truth)
    np.testing.assert_allclose(back.obs["size_factor"], truth.sum(axis=1))
    assert list(back.var_names) == GENES and list(back.obs_names) == list(adata.obs_names)
    assert back.obs["condition"].value_counts().to_dict() == dict.fromkeys(
        ("control", "STAT1", "KLF1", "KLF1+STAT1", "HLA-A"), 40
    )
    assert (back.obs["context"].astype(str) == adata.obs["line"].astype(str)).all()
    assert set(back.obs["batch"]) == {"all"} and "depth" in back.obs
    assert back.uns["simulated_cells"] and back.uns["source"] == "made up" and "junk" not in back.uns
    found = back.uns["scbig"]["read"]
    assert (found["condition_column"], found["separator"]) == ("perturbation", "+")


@pytest.mark.parametrize("backed", [False, True])
def test_quality_control_while_reading(tmp_path, backed, monkeypatch):
    monkeypatch.setattr(source, "_BLOCK", 1)
    adata = screen(n=200)
    dense = adata.X.toarray()
    dense[:, 2] = 0  # a perturbed gene that no cell expresses stays
    dense[5:, 5] = 0  # NA is in at most five cells
    dense[7, 1:] = 0
    adata.X = csr_matrix(dense)
    back = read(write(adata, tmp_path / "s.h5ad"), backed=backed, min_genes=2, min_cells_per_gene=6)
    cells = (dense > 0).sum(axis=1) >= 2
    assert "cell7" not in back.obs_names and list(back.obs_names) == list(adata.obs_names[cells])
    assert list(back.var_names) == GENES[:-1]
    np.testing.assert_array_equal(back.X.toarray(), dense[cells][:, :-1])
    # The depth is that of the whole file, whatever genes are kept.
    np.testing.assert_allclose(back.obs["size_factor"], dense.sum(axis=1)[cells])


def test_canonical_comes_back_as_it_is(tmp_path):
    once = read(screen())
    assert read(once) is once
    for suffix in (".h5ad", ".zarr"):
        again = read(write(once, tmp_path / f"s{suffix}"))
        np.testing.assert_array_equal(again.X.toarray(), once.X.toarray())
        pd.testing.assert_frame_equal(again.obs, once.obs, check_index_type=False, check_categorical=False)
        assert again.uns["scbig"]["normalization"] == "counts" and report_lines(again) == report_lines(once)


def test_input_is_left_as_it_is(tmp_path):
    adata = screen()
    before, obs = adata.X.copy(), adata.obs.copy()
    read(adata)
    assert (adata.X != before).nnz == 0
    pd.testing.assert_frame_equal(adata.obs, obs)
    path = write(adata, tmp_path / "s.h5ad")
    digest = path.read_bytes()
    read(path)
    assert path.read_bytes() == digest and [p.name for p in tmp_path.iterdir()] == ["s.h5ad"]


def test_stored_zeros_do_not_count_as_expression():
    adata = screen()
    adata.X.data[:3] = 0
    nnz = adata.X.nnz
    back = read(adata)
    assert adata.X.nnz == nnz and back.X.nnz == nnz - 3


def test_columns():
    adata = screen()
    adata.obs["batch"] = ["b1", "b2"] * 30
    adata.obs["condition"] = "something else"
    back = read(adata, condition="perturbation", context="line", size_factor="depth")
    assert set(back.obs["batch"]) == {"b1", "b2"}
    assert set(back.obs["condition_given"]) == {"something else"}
    np.testing.assert_array_equal(back.obs["size_factor"], adata.obs["depth"])
    assert back.uns["scbig"]["size_factor"] == "depth"
    lines = "\n".join(report_lines(back))
    assert "column 'perturbation' (given)" in lines and "joined by '+' (found)" in lines and "12 cells" in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition": "guide"}, r"no column 'guide' .*perturbation, line, depth.*data.condition="),
        ({"context": "cell_line"}, r"no column 'cell_line' for the context.*data.context="),
        ({"batch": "lane"}, r"no column 'lane' for the batch"),
        ({"size_factor": "umis"}, r"no column 'umis' for the size_factor"),
        ({"size_factor": "line"}, r"obs\['line'\] must hold numbers.*K562, RPE1"),
        ({"control": "AAVS1"}, r"no control cells: obs\['perturbation'\] holds HLA-A\+ctrl.*data.control="),
        ({"min_cells": 13}, r"5 conditions have fewer than 13 cells: HLA-A \(12\), KLF1 \(12\)"),
        ({"normalized": True}, r"holds counts .*leave out --config.data.normalized"),
        ({"layer": "spliced"}, r"no layer 'spliced' \(layers: none\)"),
        ({"min_genes": 7}, r"no cell has 7 genes"),
        ({"min_cells_per_gene": 1000, "dose": "depth"}, r"no gene is in 1000 cells"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(InputError, match=message):
        read(screen(), **options)


def broken(what):
    adata = screen()
    dense = adata.X.toarray()
    if what == "nan":
        dense[4, 1] = np.nan
    elif what == "inf":
        dense[4, 1] = np.inf
    elif what == "negative":
        dense[4, 1] = -2
    elif what == "fraction":
        dense[4, 1] = 0.5
    adata.X = csr_matrix(dense)
    return adata


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "1 NaN or infinite values, the first for gene 'KLF1' in 'cell4'"),
        ("inf", "1 NaN or infinite values, the first for gene 'KLF1' in 'cell4'"),
        ("negative", "1 negative values, the first for gene 'KLF1' in 'cell4'"),
        ("fraction", r"\(gene 'KLF1' in cell 'cell4' is 0.5\).*--config.data.normalized=True"),
    ],
)
def test_wrong_values_name_gene_and_cell(tmp_path, what, message, backed):
    path = write(broken(what), tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match=r"bad.h5ad.*" + message):
        read(path, backed=backed)


def test_normalized_input_and_the_counts_layer():
    adata = screen()
    adata.layers["counts"] = adata.X.copy()
    adata.X = adata.X.log1p()
    back = read(adata, normalized=True)
    assert back.uns["scbig"]["normalization"] == "given" and "counts" not in back.layers
    np.testing.assert_allclose(back.X.toarray(), adata.X.toarray())
    with pytest.raises(InputError, match=r"or --config.data.layer=counts"):
        read(adata)
    assert (read(adata, layer="counts").X != adata.layers["counts"]).nnz == 0


def test_names_given_twice():
    for axis, what in (("obs_names", "cell"), ("var_names", "gene")):
        adata = screen()
        names = list(getattr(adata, axis))
        names[3] = names[1]
        with pytest.warns(UserWarning, match="not unique"):
            adata = ad.AnnData(
                adata.X,
                obs=adata.obs.set_axis(names) if what == "cell" else adata.obs,
                var=adata.var.set_axis(names) if what == "gene" else adata.var,
            )
        with pytest.raises(InputError, match=rf"1 {what} names more than once: {names[1]}: .*make_unique=True"):
            read(adata)
        back = read(adata, make_unique=True)
        assert getattr(back, axis).is_unique and getattr(back, axis)[3] == f"{names[1]}-1"


def test_labels_that_are_missing():
    adata = screen()
    adata.obs["line"] = adata.obs["line"].where(adata.obs["line"] != "RPE1")
    with pytest.raises(InputError, match=r"20 cells have no context in obs\['line'\]"):
        read(adata, context="line")
    adata.obs["depth"] = adata.obs["depth"].astype(float).where(np.arange(60) > 1)
    with pytest.raises(InputError, match=r"obs\['depth'\] is missing or not above 0 in 2 cells: cell0, cell1"):
        read(adata, size_factor="depth")
    adata.obs.loc[["cell3"], "perturbation"] = np.nan
    with pytest.raises(InputError, match="1 of 60 rows have no condition"):
        read(adata)


def test_nullable_integers_as_depth():
    adata = screen()
    adata.obs["depth"] = adata.obs["depth"].astype("Int32")
    assert read(adata, size_factor="depth").obs["size_factor"].dtype == np.float64


def test_ensembl_names():
    adata = screen()
    ids = [f"ENSG{i:011d}" for i in range(6)]
    adata.var_names = ids
    with pytest.raises(InputError, match=r"Ensembl identifiers \(ENSG00000000000, .*gene_name"):
        read(adata)
    adata.var["feature_name"] = pd.Categorical([*GENES[:5], None])
    back = read(adata)
    assert list(back.var_names) == [*GENES[:5], ids[5]] and list(back.var["ensembl"]) == ids
    adata.var["feature_name"] = [*GENES[:4], "STAT1", "NA"]
    with pytest.raises(InputError, match="gene names more than once: STAT1"):
        read(adata)
    adata = screen()
    adata.var["gene_ids"] = ids
    assert list(read(adata).var["ensembl"]) == ids


def test_drugs():
    adata = screen(labels=["DMSO", "Trametinib", "(+)-JQ1", "Nutlin-3"])
    adata.obs["dose"] = [0.0 if i % 4 == 0 else 10.0 * (1 + i % 3) for i in range(60)]
    adata.obs.loc[adata.obs["perturbation"] == "DMSO", "dose"] = np.nan
    back = read(adata, dose="dose")
    assert set(back.obs["condition"]) == {"control", "Trametinib", "(+)-JQ1", "Nutlin-3"}
    assert back.obs["dose"].dtype == np.float64
    assert set(back.obs.loc[back.obs["condition"] == "control", "dose"]) == {0.0}
    adata.obs.loc[["cell1"], "dose"] = np.nan
    with pytest.raises(InputError, match=r"1 cells have no dose or a negative one in obs\['dose'\]: Trametinib"):
        read(adata, dose="dose")
    adata.obs["dose"] = "10 nM"
    with pytest.raises(InputError, match=r"must hold numbers for the dose, not 10 nM"):
        read(adata, dose="dose")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(tmp_path, keep):
    path = write(screen(), tmp_path / "cut.h5ad")
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(InputError, match=r"cut.h5ad is truncated or damaged"):
        read(path)


def test_damaged_chunk_is_named(tmp_path):
    adata = screen(n=3000)
    path = tmp_path / "rot.h5ad"
    adata.write_h5ad(path, compression="gzip")
    content = bytearray(path.read_bytes())
    import h5py

    with h5py.File(path, "r") as file:
        chunk = file["X/data"].id.get_chunk_info(0)
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\0" * chunk.size
    path.write_bytes(content)
    for backed in (False, True):
        with pytest.raises(InputError, match=r"rot.h5ad is truncated or damaged"):
            read(path, backed=backed)


def test_damaged_zarr_is_named(tmp_path):
    path = write(screen(), tmp_path / "rot.zarr")
    for chunk in (path / "X" / "indices").rglob("*"):
        if chunk.is_file() and chunk.name not in (".zarray", ".zattrs", "zarr.json"):
            chunk.write_bytes(b"rubbish")
    with pytest.raises(InputError, match=r"rot.zarr is truncated or damaged"):
        read(path)


def test_no_such_file_and_no_anndata(tmp_path):
    with pytest.raises(InputError, match=r"no file .*none.h5ad"):
        read(tmp_path / "none.h5ad")
    (tmp_path / "table.csv").write_text("a,b\n")
    with pytest.raises(InputError, match=r"table.csv is neither .h5ad nor .zarr"):
        read(tmp_path / "table.csv")
    import h5py

    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = 1
    with pytest.raises(InputError, match=r"other.h5ad holds no AnnData"):
        read(tmp_path / "other.h5ad")


def effects():
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"condition": ["B+A", "A", "B"]}, index=["0", "1", "2"])
    return ad.AnnData(rng.normal(size=(3, 6)).astype(np.float32), obs=obs, var=pd.DataFrame(index=GENES))


def test_effects_table(tmp_path):
    table = effects()
    back = effects_table(write(table, tmp_path / "e.h5ad"))
    assert list(back.obs["condition"]) == ["A+B", "A", "B"] == list(back.obs_names)
    assert back.uns["scbig"]["kind"] == "effects" and back.X.dtype == np.float32
    np.testing.assert_array_equal(back.X, table.X)
    assert "recorded" not in back.layers
    table.X[0, 2] = 0
    table.X = csr_matrix(table.X)
    back = effects_table(table)
    assert isinstance(back.X, np.ndarray) and not back.layers["recorded"][0, 2] and back.layers["recorded"].sum() == 17
    again = effects_table(write(back, tmp_path / "again.h5ad"))
    np.testing.assert_array_equal(again.X, back.X)


def test_effects_that_are_refused(tmp_path):
    table = effects()
    table.obs["condition"] = ["A+B", "B+A", "B"]
    with pytest.raises(InputError, match=r"name conditions more than once: A\+B"):
        effects_table(table)
    table = effects()
    table.X[1, 1] = np.inf
    with pytest.raises(InputError, match="gene 'KLF1' in 'A'"):
        effects_table(table)


@pytest.mark.realdata
def test_real_screens(shared):
    data = shared / "data"
    papalexi = read(data / "papalexi2021_thp1.h5ad", size_factor="n_umis", batch="bio_rep")
    counts = papalexi.obs["condition"].value_counts()
    assert papalexi.shape == (20729, 303) and counts["control"] == 2386 and len(counts) == 26
    assert papalexi.obs["batch"].nunique() == 3 and papalexi.uns["scbig"]["size_factor"] == "n_umis"
    streamed = read(data / "papalexi2021_thp1.h5ad", size_factor="n_umis", batch="bio_rep", backed=True)
    assert (streamed.X != papalexi.X).nnz == 0
    norman = read(data / "norman2019_cells.h5ad", normalized=True, context="cell_type")
    assert len(norman.obs["condition"].cat.categories) == 34 and (norman.obs["condition"] == "KLF1+SET").any()
    with pytest.raises(InputError, match=r"norman2019_cells.h5ad does not hold counts"):
        read(data / "norman2019_cells.h5ad")
    kang = read(data / "kang2018_pbmc.h5ad", normalized=True, context="cell_type")
    assert kang.obs["context"].nunique() == 7
    table = effects_table(data / "replogle2022_k562_effects.h5ad")
    assert table.n_obs == 1166 and "RBM14-RBM4" in table.obs_names
    assert effects_table(data / "norman2019_effects.h5ad").shape == (234, 2000)
