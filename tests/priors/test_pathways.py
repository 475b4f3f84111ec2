import gzip

import numpy as np
import pytest

from scbig import priors
from scbig.errors import InputError
from scbig.priors import AliasTable

GMT = "one\tR-1\tA\tB\tC\nsame\tR-2\tA\tB\nsame\tR-3\tC\tD\tC\nempty\tR-4\n\nspaced \thttp://x\tE\t\tF \n"


def put(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.gmt", "a.gmt.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_read_gmt(tmp_path, name, end):
    assert priors.read_gmt(put(tmp_path / name, GMT.replace("\n", end))) == {
        "one": ("A", "B", "C"),
        "same (R-2)": ("A", "B"),
        "same (R-3)": ("C", "D"),
        "empty": (),
        "spaced": ("E", "F"),
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("one\tR\tA\njust some text\n", "line 2 is not name"),
        ("\tR\tA\n", "line 1 is not name"),
        ("one\tR\tA\none\tR\tB\n", r"one \(R\) twice"),
        ("\n\n", "no gene sets"),
    ],
)
def test_bad_gmt_is_refused(tmp_path, text, told):
    path = put(tmp_path / "bad.gmt", text)
    with pytest.raises(InputError, match=told) as error:
        priors.read_gmt(path)
    assert str(path) in str(error.value)


def test_cut_gmt_is_refused(tmp_path):
    path = put(tmp_path / "cut.gmt.gz", "".join(f"set{i}\tR{i}\tG{i * 7919}\n" for i in range(2000)))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.gmt\.gz is truncated or corrupt"):
        priors.read_gmt(path)


GENE2GO = """#tax_id\tGeneID\tGO_ID\tEvidence\tQualifier\tGO_term\tPubMed\tCategory
9606\t1\tGO:1\tIEA\tinvolved_in\tterm one\t-\tProcess
9606\t2\tGO:1\tIDA\tinvolved_in\tterm one\t1|2\tProcess
9606\t2\tGO:1\tIEA\tinvolved_in\tterm one\t-\tProcess
9606\t1\tGO:2\tIDA\tNOT enables\tterm two\t-\tFunction
9606\t2\tGO:2\tIDA\tenables\tterm two\t-\tFunction
9606\t9\tGO:2\tIDA\tenables\tterm two\t-\tFunction
10090\t1\tGO:3\tIDA\tenables\tterm three\t-\tFunction
"""


def test_gene2go(tmp_path):
    ids = priors.read_gene_ids(put(tmp_path / "ids.tsv", "symbol\tensgene\tentrez\nA\tE1\t1\nB\tE2\t2\nC\tE3\t\n"))
    assert ids == {"1": "A", "2": "B"}
    path = put(tmp_path / "gene2go.gz", GENE2GO)
    assert priors.read_gene2go(path, ids) == {"GO:1": ("A", "B"), "GO:2": ("B",)}
    assert priors.read_gene2go(path, ids, tax_id="10090") == {"GO:3": ("A",)}


def test_bad_gene2go_and_ids_are_refused(tmp_path):
    path = put(tmp_path / "gene2go", GENE2GO)
    with pytest.raises(InputError, match="annotates none of the 1 genes"):
        priors.read_gene2go(path, {"77": "X"})
    with pytest.raises(InputError, match="line 2 has 2 fields, the header 8"):
        priors.read_gene2go(put(tmp_path / "cut", GENE2GO.splitlines()[0] + "\n9606\t1\n"), {"1": "A"})
    with pytest.raises(InputError, match=r"not gene2go.*GO_ID, GeneID"):
        priors.read_gene2go(put(tmp_path / "other", "tax_id\tQualifier\n"), {"1": "A"})
    with pytest.raises(InputError, match=r"ids\.tsv has no column entrez"):
        priors.read_gene_ids(put(tmp_path / "ids.tsv", "symbol\tid\nA\t1\n"))
    with pytest.raises(InputError, match="column entrez is empty"):
        priors.read_gene_ids(put(tmp_path / "ids.tsv", "symbol\tentrez\nA\t\n"))


SETS = {"big": tuple("ABCDE"), "small": ("A",), "fits": ("B", "D", "X"), "other": ("Y", "Z")}


def test_membership_keeps_sets_by_their_genes_in_the_list():
    found = priors.membership(SETS, list("ABCD"), min_genes=2, max_genes=3)
    assert found.names == ("fits",)
    np.testing.assert_array_equal(found.matrix, [[0, 0.5, 0, 0.5]])
    found = priors.membership(SETS, list("DCBAQ"), min_genes=2, max_genes=4, targets=["A", "X", "Q"])
    assert found.names == ("big", "fits")
    np.testing.assert_array_equal(found.matrix, [[0.25] * 4 + [0], [0.5, 0, 0.5, 0, 0]])
    assert found.matrix.dtype == np.float32
    assert found.coverage.missing == ("Q",)
    # X is in a kept set though not in the list.
    assert found.coverage.missing_targets == ("Q",)


def test_rows_sum_to_one_and_average_the_members():
    rng = np.random.default_rng(0)
    genes = [f"g{i}" for i in range(40)]
    sets = {f"s{k}": tuple(rng.choice(genes, rng.integers(1, 40), replace=False)) for k in range(30)}
    found = priors.membership(sets, genes, min_genes=5, max_genes=20)
    cells = rng.random((6, 40)).astype(np.float32)
    sizes = [len(sets[name]) for name in found.names]
    assert min(sizes) >= 5
    assert max(sizes) <= 20
    assert len(found.names) == sum(5 <= len(genes) <= 20 for genes in sets.values())
    expected = [[cells[i, [genes.index(g) for g in sets[n]]].mean() for n in found.names] for i in range(6)]
    np.testing.assert_allclose(cells @ found.matrix.T, expected, rtol=1e-5)


def test_membership_through_aliases_in_both_directions():
    aliases = AliasTable.build([("OLDB", "B"), ("D", "NEWD")])
    found = priors.membership(SETS, ["OLDB", "NEWD", "A"], 2, 3, aliases)
    assert found.names == ("big", "fits")
    np.testing.assert_allclose(found.matrix, [[1 / 3] * 3, [0.5, 0.5, 0]])
    assert found.coverage.renamed == (("OLDB", "B"), ("NEWD", "D"))


@pytest.mark.parametrize(
    ("sets", "genes", "told"),
    [
        (
            SETS,
            list("ABCDE"),
            "Reactome: none of 4 gene sets has 10 to 500 of the 5 genes .the largest overlap is 5",
        ),
        ({}, ["A"], "none of 0 gene sets"),
        (SETS, ["A", "B", "A"], "more than once: A"),
    ],
)
def test_membership_refusals(sets, genes, told):
    with pytest.raises(InputError, match=told):
        priors.membership(sets, genes, source="Reactome")


@pytest.mark.realdata
def test_real_gene_sets_on_the_norman_panel(shared):
    anndata = pytest.importorskip("anndata")
    genes = anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad", backed="r").var_names.tolist()
    folder = shared / "priors"
    aliases = priors.read_aliases(folder / "aliases.tsv.gz")
    counts = {}
    for name in ("ReactomePathways_2024-09-18.gmt", "go_2024-04-25.gmt.gz", "hallmark_v7.0.gmt"):
        sets = priors.read_gmt(folder / name)
        found = priors.membership(sets, genes, aliases=aliases)
        sizes = (found.matrix > 0).sum(axis=1)
        assert sizes.min() >= 10
        assert sizes.max() <= 500
        counts[name.split("_")[0]] = len(sets), len(found.names)
        assert len(found.names) >= len(priors.membership(sets, genes).names)
    assert counts["ReactomePathways"][0] == 2694
    assert counts["ReactomePathways"][1] >= 200
    assert counts["hallmark"] == (50, 34)
    assert counts["go"][1] >= 200
