import numpy as np
import pytest

from scbig import priors
from scbig.errors import InputError
from scbig.priors import AliasTable, Embedding

TABLE = AliasTable.build([("OLDB", "B"), ("OLDC", "C")])
EMBEDDING = Embedding("emb", ("B", "A", "OLDC", "Z"), np.array([[3, 4], [1, 0], [0, 2], [0, 0]], np.float32))


def test_rows_follow_the_gene_list_and_missing_ones_are_masked():
    found = priors.align(EMBEDDING, ["A", "X", "B"])
    np.testing.assert_array_equal(found.vectors, [[1, 0], [0, 0], [3, 4]])
    np.testing.assert_array_equal(found.mask, [True, False, True])
    assert found.genes == ("A", "X", "B")
    assert found.vectors.dtype == np.float32
    assert found.coverage.missing == ("X",)


def test_aliases_work_in_both_directions():
    plain = priors.align(EMBEDDING, ["A", "OLDB", "C"])
    assert plain.mask.tolist() == [True, False, False]
    found = priors.align(EMBEDDING, ["A", "OLDB", "C"], TABLE, targets=["C", "OLDB", "Q"])
    np.testing.assert_array_equal(found.vectors, [[1, 0], [3, 4], [0, 2]])
    assert found.coverage.renamed == (("OLDB", "B"), ("C", "OLDC"))
    assert (found.coverage.n_targets, found.coverage.n_targets_found) == (3, 2)
    assert found.coverage.missing_targets == ("Q",)


def test_targets_need_not_be_in_the_list():
    assert priors.align(EMBEDDING, ["A"], targets=["B", "B", "Q"]).coverage.n_targets_found == 1
    assert priors.align(EMBEDDING, ["A"], targets=["B", "B", "Q"]).coverage.n_targets == 2


def test_a_vector_of_zeros_counts_as_missing():
    found = priors.align(EMBEDDING, ["A", "Z"], targets=["Z"])
    assert found.mask.tolist() == [True, False]
    assert found.coverage.missing == found.coverage.missing_targets == ("Z",)


def test_no_overlap_and_duplicates_are_refused():
    with pytest.raises(InputError, match=r"emb knows none of the 2 genes \(ENSG1, ENSG2\).*B, A, OLDC"):
        priors.align(EMBEDDING, ["ENSG1", "ENSG2"])
    with pytest.raises(InputError, match="none of the 1 genes"):
        priors.align(EMBEDDING, ["Z"])
    with pytest.raises(InputError, match="gene list holds names more than once: A"):
        priors.align(EMBEDDING, ["A", "B", "A"])


def random_source(seed, genes, dim, scale):
    rng = np.random.default_rng(seed)
    return Embedding(f"s{seed}", genes, (scale * rng.normal(size=(len(genes), dim))).astype(np.float32))


def test_concatenation_weighs_sources_alike_whatever_their_scale():
    genes = tuple("ABCDE")
    one, two = random_source(1, genes, 7, 100.0), random_source(2, genes, 3, 0.01)
    joined = priors.concatenate([priors.align(one, genes), priors.align(two, genes)])
    assert joined.vectors.shape == (5, 10)

    def cosines(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit @ unit.T

    np.testing.assert_allclose(cosines(joined.vectors), (cosines(one.vectors) + cosines(two.vectors)) / 2, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joined.vectors, axis=1), 1, atol=1e-6)
    assert joined.coverage.source == "s1 + s2"


def test_concatenation_with_partly_missing_genes():
    one, two = random_source(1, ("A", "B"), 2, 1.0), random_source(2, ("B", "C"), 3, 1.0)
    genes, targets = ["A", "B", "C", "D"], ["A", "C", "D", "Q"]
    parts = [priors.align(each, genes, targets=targets) for each in (one, two)]
    joined = priors.concatenate(parts)
    assert joined.mask.tolist() == [True, True, True, False]
    np.testing.assert_allclose(np.linalg.norm(joined.vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert not joined.vectors[0, 2:].any()
    assert not joined.vectors[2, :2].any()
    assert joined.coverage.missing == ("D",)
    assert joined.coverage.missing_targets == ("D", "Q")
    assert (joined.coverage.n_targets, joined.coverage.n_targets_found) == (4, 2)


def test_concatenation_of_nothing_or_of_different_lists_is_refused():
    with pytest.raises(InputError, match="no embedding"):
        priors.concatenate([])
    with pytest.raises(InputError, match="emb and emb are aligned to different gene lists"):
        priors.concatenate([priors.align(EMBEDDING, ["A", "B"]), priors.align(EMBEDDING, ["B", "A"])])


def test_load_semantic_equals_its_parts(tmp_path):
    genes = tuple("ABCD")
    sources = [random_source(1, genes, 4, 1.0), random_source(2, genes[:2], 2, 1.0)]
    for each in sources:
        priors.save_embedding(each, tmp_path / f"{each.source}.npz")
    joined = priors.load_semantic(tmp_path, ["s1.npz", "s2.npz"], genes, TABLE, ["A"])
    expected = priors.concatenate([priors.align(each, genes, TABLE, ["A"]) for each in sources])
    np.testing.assert_array_equal(joined.vectors, expected.vectors)
    assert joined.coverage == expected.coverage


@pytest.mark.realdata
def test_norman_targets_in_the_real_sources(shared):
    anndata = pytest.importorskip("anndata")
    screen = anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad")
    genes = screen.var_names.tolist()
    targets = sorted({gene for label in screen.obs["condition"] for gene in label.split("+")})
    aliases = priors.read_aliases(shared / "priors" / "aliases.tsv.gz")

    def coverage(name, table):
        embedding = priors.read_embedding(shared / "priors" / name)
        return embedding, priors.align(embedding, genes, table, targets).coverage

    text_plain, text = (
        coverage("emb_refseq_lsa256.npz", None)[1],
        coverage("emb_refseq_lsa256.npz", aliases)[1],
    )
    assert set(text_plain.missing_targets) == {"C19orf26", "C3orf72", "ELMSAN1", "KIAA1804"}
    assert text.missing_targets == ()
    assert text.n_found > text_plain.n_found > 1500
    network, string = coverage("emb_string_netmf128.npz", aliases)
    # Ten are absent; SLC6A9 is there with a vector of zeros.
    absent = set(string.missing_targets) - set(network.genes)
    assert len(absent) == 10
    assert set(string.missing_targets) - absent == {"SLC6A9"}
    # Names that are in neither list still lead to one gene only.
    assert not set(text.ambiguous) & {gene for gene, _ in text.renamed}


@pytest.mark.realdata
def test_aliases_that_are_symbols_of_other_genes(shared):
    folder = shared / "priors"
    symbols = priors.read_gene_ids(folder / "gene_ids.tsv.gz", "ensgene").values()
    loose = priors.read_aliases(folder / "aliases.tsv.gz")
    strict = priors.read_aliases(folder / "aliases.tsv.gz", set(symbols))
    assert loose.resolve(["SKI"], {"HHAT"}) == ["HHAT"]
    assert strict.resolve(["SKI"], {"HHAT"}) == [None]
    assert strict.resolve(["C19orf26"], {"CBARP"}) == ["CBARP"]
