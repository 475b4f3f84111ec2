import gzip

import numpy as np
import pandas as pd
import pytest

from scbig import priors
from scbig.errors import InputError
from scbig.priors import ppi as module
from scbig.priors.aliases import AliasTable

EDGES = [
    ("A", "B", 900),
    ("B", "A", 950),
    ("B", "NA", 700),
    ("C", "A", 699),
    ("D", "D", 999),
    ("E", "C", 800),
]
LINKS = "protein1 protein2 combined_score\n" + "".join(f"9606.P{a} 9606.P{b} {s}\n" for a, b, s in EDGES)
INFO = "#string_protein_id\tpreferred_name\tprotein_size\tannotation\n" + "".join(
    f'9606.P{name}\t{name}\t100\tdoes "this; and that\n' for name in ("A", "B", "NA", "C", "D", "E")
)
EXPECTED = {("A", "B"): 950, ("B", "NA"): 700, ("C", "E"): 800}


def edges(ppi):
    names = [tuple(sorted((ppi.genes[i], ppi.genes[j]))) for i, j in zip(ppi.rows, ppi.cols, strict=True)]
    assert len(set(names)) == len(names)
    assert (ppi.rows < ppi.cols).all()
    return dict(zip(names, ppi.scores.tolist(), strict=True))


@pytest.fixture(params=["", ".gz"])
def gz(request):
    return request.param


def put(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_string_links_with_info(tmp_path, gz):
    links = put(tmp_path / f"9606.protein.links.v12.0.txt{gz}", LINKS)
    ppi = priors.read_ppi(links, info=put(tmp_path / f"info.txt{gz}", INFO))
    assert edges(ppi) == EXPECTED
    assert ppi.source == "9606.protein.links.v12.0"
    # Known to the source, though no edge of it is strong enough.
    assert set(ppi.genes) == {"A", "B", "NA", "C", "D", "E"}


@pytest.mark.parametrize("mark", ["\t", ",", " "])
@pytest.mark.parametrize("header", ["gene_a gene_b combined_score", "x y score", None])
def test_edge_lists(tmp_path, mark, header, gz):
    lines = [*([header] if header else []), *(f"{a} {b} {s}" for a, b, s in EDGES)]
    path = put(tmp_path / f"e.txt{gz}", "\n".join(lines).replace(" ", mark) + "\n")
    assert edges(priors.read_ppi(path)) == EXPECTED


@pytest.mark.parametrize("header", ["gene_a\tgene_b\n", ""])
def test_edge_list_without_scores_is_kept_whole(tmp_path, header):
    path = put(tmp_path / "e.tsv", header + "".join(f"{a}\t{b}\n" for a, b, _ in EDGES))
    ppi = priors.read_ppi(path, min_score=700)
    assert edges(ppi) == dict.fromkeys([*EXPECTED, ("A", "C")], 1000.0)


def test_score_column_is_found_by_name(tmp_path):
    text = "protein1\tprotein2\tneighborhood\tcombined_score\nA\tB\t0\t900\nA\tC\t999\t100\n"
    assert edges(priors.read_ppi(put(tmp_path / "e.tsv", text))) == {("A", "B"): 900}
    with pytest.raises(InputError, match="no column is named combined_score or score or weight; it has a, b, c"):
        priors.read_ppi(put(tmp_path / "e.tsv", "a\tb\tc\nA\tB\t900\n"))


def test_pieces_make_no_difference(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 20, (500, 2))).map("g{}".format)
    frame[2] = rng.integers(500, 1000, 500)
    frame.to_csv(path := tmp_path / "e.csv", index=False, header=False)
    whole = priors.read_ppi(path)
    monkeypatch.setattr(module, "_CHUNK", 7)
    pieces = priors.read_ppi(path)
    oracle = {}
    for a, b, score in frame.itertuples(index=False):
        if a != b and score >= 700:
            pair = tuple(sorted((a, b)))
            oracle[pair] = max(score, oracle.get(pair, 0))
    assert edges(whole) == edges(pieces) == oracle


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("A\tB\t0.9\nB\tC\t0.8\n", r"score of 700 \(highest 0.9\); pass min_score"),
        ("A\tA\t900\n", "self-loops"),
        ("a\tb\tscore\n", "no edge"),
        ("A\tB\t900\nB\tC\thigh\n", "a score is not a number"),
        ("A\tB\t900\nB\tC\tnan\n", "a score is not a number"),
        ("A\tB\t900\n\tC\t900\n", "lacks a gene"),
        ("A\tB\t900\nA\tB\n", "a score is not a number"),
        ("A\tB\t900\nA\n", "lacks a gene|not a number"),
        ("", "empty"),
        ("AB\n", "single field"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, told):
    path = put(tmp_path / "bad.tsv", text)
    with pytest.raises(InputError, match=told) as error:
        priors.read_ppi(path)
    assert str(path) in str(error.value)


def test_string_files_that_do_not_fit(tmp_path):
    links = put(tmp_path / "links.txt", LINKS)
    with pytest.raises(InputError, match=r"STRING identifiers such as 9606\.P.*protein\.info"):
        priors.read_ppi(links)
    with pytest.raises(InputError, match=r"does not name 9606\.PE; take links and info of one release"):
        priors.read_ppi(links, info=put(tmp_path / "info.txt", INFO[: INFO.index("9606.PE")]))
    with pytest.raises(InputError, match=r"other\.txt is not STRING's protein\.info"):
        priors.read_ppi(links, info=put(tmp_path / "other.txt", "gene\tid\nA\tB\n"))
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(gzip.compress(LINKS.encode())[:-12])
    with pytest.raises(InputError, match=r"cut\.txt\.gz is truncated or corrupt"):
        priors.read_ppi(cut, info=put(tmp_path / "info.txt", INFO))


@pytest.fixture
def ppi(tmp_path):
    return priors.read_ppi(put(tmp_path / "e.txt", "\n".join(f"{a} {b} {s}" for a, b, s in EDGES)))


def test_adjacency_is_symmetric_binary_with_an_empty_diagonal(ppi):
    genes = ["X", "NA", "A", "B", "D"]
    network = priors.adjacency(ppi, genes, targets=["A", "Q"])
    expected = np.zeros((5, 5), np.float32)
    for i, j in ((1, 3), (2, 3)):
        expected[i, j] = expected[j, i] = 1
    np.testing.assert_array_equal(network.matrix.toarray(), expected)
    assert network.matrix.dtype == np.float32
    assert network.mask.tolist() == [False, True, True, True, True]
    assert network.coverage.missing == ("X",)
    assert network.coverage.missing_targets == ("Q",)


def test_adjacency_follows_a_permutation_of_the_genes(ppi):
    genes = np.array(["A", "B", "C", "E", "NA"])
    order = np.random.default_rng(1).permutation(5)
    one = priors.adjacency(ppi, genes.tolist()).matrix.toarray()
    two = priors.adjacency(ppi, genes[order].tolist()).matrix.toarray()
    np.testing.assert_array_equal(two, one[np.ix_(order, order)])


def test_adjacency_through_aliases(ppi):
    aliases = AliasTable.build([("OLDA", "A"), ("B", "NEWB")])
    network = priors.adjacency(ppi, ["OLDA", "NEWB"], aliases)
    np.testing.assert_array_equal(network.matrix.toarray(), [[0, 1], [1, 0]])
    assert network.coverage.renamed == (("OLDA", "A"), ("NEWB", "B"))


def test_adjacency_refuses_strangers_and_duplicates(ppi):
    with pytest.raises(InputError, match="e knows none of the 1 genes"):
        priors.adjacency(ppi, ["ENSG1"])
    with pytest.raises(InputError, match="more than once: A"):
        priors.adjacency(ppi, ["A", "A"])


@pytest.mark.realdata
def test_real_string_network(shared):
    ppi = priors.read_ppi(shared / "priors" / "string_v11.5_min700.tsv.gz")
    assert (len(ppi.genes), len(ppi.rows)) == (16_484, 247_837)
    assert ppi.scores.min() >= 700
    strict = priors.read_ppi(shared / "priors" / "string_v11.5_min700.tsv.gz", min_score=900)
    assert len(strict.rows) == int((ppi.scores >= 900).sum()) < len(ppi.rows)
    genes = sorted(ppi.genes)[:1000]
    matrix = priors.adjacency(ppi, genes).matrix
    assert abs(matrix - matrix.T).nnz == 0
    assert not matrix.diagonal().any()
    assert set(matrix.data) == {1.0}
