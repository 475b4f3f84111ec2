import gzip
import importlib.util
import pickle

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import priors
from scbig.errors import InputError
from scbig.priors import Embedding

GENES = ("TP53", "NA", "CEBPA")  # NA is a name here, not a missing value
VECTORS = np.array([[1, 2, 3, 4], [0.5, -1, 0, 2], [1e-3, 7, -2, 0.25]], np.float32)
FRAME = pd.DataFrame(VECTORS, index=GENES)


def same(path, key=None):
    found = priors.read_embedding(path, key)
    assert found.genes == GENES
    assert found.vectors.dtype == np.float32
    np.testing.assert_allclose(found.vectors, VECTORS, rtol=1e-3)
    return found


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_npz(tmp_path, dtype):
    path = tmp_path / "emb.v1.npz"
    np.savez(path, genes=np.array(GENES), vectors=VECTORS.astype(dtype), other=VECTORS[:, :2])
    assert same(path).source == "emb.v1"
    assert priors.read_embedding(path, "other").vectors.shape == (3, 2)
    np.savez(path, names=np.array([g.encode() for g in GENES]), vectors=VECTORS)
    same(path)


def test_round_trip(tmp_path):
    path = tmp_path / "a.npz"
    priors.save_embedding(Embedding("a", GENES, VECTORS), path)
    np.testing.assert_array_equal(same(path).vectors, VECTORS)
    with pytest.raises(InputError, match=r"a\.csv"):
        priors.save_embedding(Embedding("a", GENES, VECTORS), tmp_path / "a.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


@pytest.mark.parametrize("name", ["e.csv", "e.tsv", "e.txt", "e.csv.gz", "e.tsv.gz"])
@pytest.mark.parametrize("header", ["names", "counts", "none", "unnamed"])
def test_delimited(tmp_path, name, header):
    path = tmp_path / name
    frame = FRAME.rename_axis("gene") if header in ("names", "counts") else FRAME
    frame = frame.rename(columns=lambda i: f"d{i}") if header == "names" else frame
    frame.to_csv(path, sep="," if "csv" in name else "\t", header=header != "none")
    same(path)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
@pytest.mark.parametrize("layout", ["index", "column", "lists"])
def test_parquet(tmp_path, layout):
    path = tmp_path / "e.parquet"
    frame = FRAME.rename(columns=str)
    if layout == "column":
        frame = frame.reset_index(names="symbol")
    if layout == "lists":
        frame = pd.DataFrame({"symbol": GENES, "embedding": list(VECTORS)})
    frame.to_parquet(path)
    same(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"e\.parquet is truncated, corrupt or no parquet"):
        priors.read_embedding(path)


@pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")
def test_parquet_of_another_layout(tmp_path):
    path = tmp_path / "e.parquet"
    pd.DataFrame({"a": ["x"], "b": ["y"], "c": [1.0]}).to_parquet(path)
    with pytest.raises(InputError, match=r"names.*a, b, c"):
        priors.read_embedding(path)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_h5ad(tmp_path, make):
    path = tmp_path / "e.h5ad"
    obs = pd.DataFrame(index=list(GENES))
    ad.AnnData(make(VECTORS), obs=obs, obsm={"half": VECTORS[:, :2]}).write_h5ad(path)
    same(path)
    assert priors.read_embedding(path, "half").vectors.shape == (3, 2)
    ad.AnnData(make(np.ones((2, 3), np.float32)), var=obs, varm={"loadings": VECTORS}).write_h5ad(path)
    same(path, "loadings")
    with pytest.raises(InputError, match=r"no pca.*varm loadings"):
        priors.read_embedding(path, "pca")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"e\.h5ad is truncated, corrupt or no .h5ad"):
        priors.read_embedding(path)


def test_plain_pickle(tmp_path):
    path = tmp_path / "e.pkl"
    for rows in (VECTORS, VECTORS.tolist(), VECTORS[:, None, :], VECTORS.astype(">f8")):
        path.write_bytes(pickle.dumps(dict(zip(GENES, rows, strict=True))))
        same(path)


def test_genecompass_pickle_looks_up_symbol_then_identifier_then_raw_name(tmp_path):
    v = np.eye(5, dtype=np.float32)
    by_ensembl = {"ENSG1": v[0], "ENSG2": v[1], "ENSG9": v[4]}
    by_symbol = {"TP53": v[2], "MYC": v[3]}
    symbols = {"TP53": "ENSG1", "CEBPA": "ENSG2", "GONE": "ENSG7"}
    for whole in ((by_ensembl, by_symbol, symbols), {"a": symbols, "b": by_symbol, "c": by_ensembl}):
        path = tmp_path / "genecompass.pickle"
        path.write_bytes(pickle.dumps(whole))
        found = priors.read_embedding(path)
        rows = dict(zip(found.genes, found.vectors.argmax(axis=1).tolist(), strict=True))
        assert rows == {"TP53": 2, "MYC": 3, "CEBPA": 1, "ENSG9": 4}


def npz(path, **arrays):
    np.savez(path, **({"genes": np.array(GENES), "vectors": VECTORS} | arrays))


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"genes": np.array(["A", "B", "A"])}, "more than once: A"),
        ({"genes": np.array(["A", "B"])}, "2 names but 3 vectors"),
        ({"genes": np.array(["A", "", "B"])}, "name 2 is empty"),
        ({"genes": np.array(["A", "B", "C"], object)}, "npz of plain arrays"),
        ({"genes": np.arange(3)}, "must be a list of text"),
        ({"vectors": VECTORS * [[1], [np.nan], [1]]}, "NaN or infinite values for NA;"),
        ({"vectors": VECTORS.astype(np.float64) * 1e300}, "NaN or infinite values for TP53"),
        ({"vectors": VECTORS[0]}, r"not of shape \(4,\)"),
        ({"vectors": np.zeros((3, 0))}, "no vectors"),
        ({"vectors": np.array([["a"], ["b"], ["c"]])}, "not numbers"),
    ],
)
def test_bad_npz_is_refused(tmp_path, arrays, told):
    path = tmp_path / "bad.npz"
    npz(path, **arrays)
    with pytest.raises(InputError, match=told) as error:
        priors.read_embedding(path)
    assert str(path) in str(error.value)


def test_npz_with_other_arrays_or_cut(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, genes=np.array(GENES), X=VECTORS)
    with pytest.raises(InputError, match="no array vectors; it has genes, X"):
        priors.read_embedding(path)
    npz(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"bad\.npz"):
        priors.read_embedding(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="empty"):
        priors.read_embedding(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A,1,2\nB,1\n", "'' in column 3 for B is not a number; is the line complete"),
        ("A,1,2\nB,1,x\n", "'x' in column 3 for B"),
        ("A,1,2\nB,,2\n", "'' in column 2 for B"),
        ("A,1,2\nB,1,2,3\n", "unequal length"),
        ("A,1,2\nB,1,nan\n", "NaN or infinite values for B"),
        ("A,1,2\nB,1,inf\n", "NaN or infinite values for B"),
        ("gene,a,b\n", "no vectors below"),
        ("A,1,2\nA,3,4\n", "more than once: A"),
        ("A\nB\n", "single field"),
    ],
)
def test_bad_text_is_refused(tmp_path, text, told):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        priors.read_embedding(path)
    assert str(path) in str(error.value)


def test_cut_gzip_and_unknown_ending_and_stray_key(tmp_path):
    path = tmp_path / "e.csv.gz"
    rng = np.random.default_rng(0)
    text = "".join(f"g{i},{rng.random()},{rng.random()}\n" for i in range(3000))
    path.write_bytes(gzip.compress(text.encode())[:20000])
    with pytest.raises(InputError, match=r"e\.csv\.gz is truncated or corrupt"):
        priors.read_embedding(path)
    with pytest.raises(InputError, match=r"end in \.docx"):
        priors.read_embedding(tmp_path / "e.docx")
    with pytest.raises(InputError, match="key X has no meaning"):
        priors.read_embedding(tmp_path / "e.csv", "X")
    with pytest.raises(InputError, match=r"no file .*absent\.csv"):
        priors.read_embedding(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"A": np.ones(3), "B": np.ones(2)}, "B has 2 numbers, A has 3"),
        ({"A": np.ones((2, 2))}, "A has no vector"),
        ({"A": [[1], [1, 2]]}, "A has no plain vector"),
        ({"A": None}, "A has no vector"),
        ({1: np.ones(2)}, "keys that are not text"),
        ({"A": np.array([1, np.inf])}, "infinite values for A"),
        ({}, "no dictionary|no vectors"),
        (np.ones(3), "no dictionary from gene to vector but ndarray"),
    ],
)
def test_bad_dictionaries_are_refused(tmp_path, content, told):
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match=told) as error:
        priors.read_embedding(path)
    assert str(path) in str(error.value)
