import gzip

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import priors
from scbig.errors import InputError
from scbig.priors import PPI


def cosine(vectors):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def neighbours(vectors, k=10):
    similarity = cosine(vectors)
    np.fill_diagonal(similarity, -2)
    return [set(row) for row in np.argpartition(-similarity, k, axis=1)[:, :k].tolist()]


def planted(seed=0, groups=4, size=20, inside=0.5, outside=0.02):
    """A network of communities, and one gene without an edge."""
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(groups), size)
    n = len(label)
    rows, cols = np.triu_indices(n, 1)
    kept = rng.random(len(rows)) < np.where(label[rows] == label[cols], inside, outside)
    names = (*(f"g{i}" for i in range(n)), "alone")
    scores = np.full(kept.sum(), 900, np.float32)
    return PPI("net", names, rows[kept].astype(np.int32), cols[kept].astype(np.int32), scores), label


def signs_are_fixed(vectors):
    extreme = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return bool((extreme > 0).all())


def test_network_factorisation_finds_communities_and_leaves_out_lone_genes():
    ppi, label = planted()
    found = priors.factorise_network(ppi, dim=8, seed=1)
    assert found.genes == ppi.genes[:-1]
    assert found.vectors.shape == (80, 8)
    near = [np.mean(label[list(row)] == label[i]) for i, row in enumerate(neighbours(found.vectors))]
    assert np.mean(near) > 0.9
    assert signs_are_fixed(found.vectors)


def test_network_factorisation_equals_the_definition_on_a_small_network():
    ppi, _ = planted(size=8)
    n, window = 32, 5
    adjacency = np.zeros((n, n))
    adjacency[ppi.rows, ppi.cols] = adjacency[ppi.cols, ppi.rows] = 1
    degree = adjacency.sum(axis=1)
    # NetMF with all walks written out (WSDM 2018, eq. 3), but for the lowest two eigenpairs.
    scaled = adjacency / np.sqrt(degree[:, None] * degree)
    values, vectors = np.linalg.eigh(scaled)
    walks = np.mean([values**r for r in range(1, window + 1)], axis=0)
    walks[:2] = 0
    power = (vectors * np.maximum(walks, 0)) @ vectors.T
    target = np.log(np.maximum(degree.sum() * power / np.sqrt(degree[:, None] * degree), 1))
    left, singular, _ = np.linalg.svd(target)
    expected = left[:, :6] * np.sqrt(singular[:6])
    found = priors.factorise_network(ppi, dim=6, window=window)
    assert found.genes == ppi.genes[:-1]
    np.testing.assert_allclose(found.vectors @ found.vectors.T, expected @ expected.T, atol=0.02)


def test_everything_is_repeatable_and_the_seed_only_moves_rounding():
    ppi, _ = planted()
    for compute in (
        lambda seed: priors.factorise_network(ppi, dim=3, seed=seed),
        lambda seed: priors.embed_gene_sets(SETS, dim=3, seed=seed),
        lambda seed: priors.embed_texts(TEXTS, dim=2, seed=seed),
        lambda seed: priors.coexpression(np.random.default_rng(0).random((20, 8)), list("ABCDEFGH"), 3, seed),
    ):
        one, again, other = compute(0), compute(0), compute(1)
        assert one.genes == again.genes == other.genes
        np.testing.assert_array_equal(one.vectors, again.vectors)
        np.testing.assert_allclose(one.vectors, other.vectors, atol=2e-3)


TEXTS = {
    "KIN1": "This kinase phosphorylates tyrosine residues of receptors in signalling",
    "KIN2": "A tyrosine kinase of receptors; phosphorylates substrates in signalling",
    "KIN3": "Serine kinase that phosphorylates substrates",
    "RIB1": "Component of the ribosome required for protein translation",
    "RIB2": "Ribosome subunit; takes part in translation elongation",
    "RIB3": "A protein of the large ribosome, translation elongation",
    "NOTE": "xyzzy",
}


def test_texts_of_like_genes_lie_close_and_uninformative_ones_are_left_out():
    found = priors.embed_texts(TEXTS, dim=2)
    assert found.genes == tuple(TEXTS)[:-1]
    similarity = cosine(found.vectors)
    assert similarity[:3, :3].min() > similarity[:3, 3:].max() + 0.3
    assert similarity[3:, 3:].min() > 0.5
    assert signs_are_fixed(found.vectors)


SETS = {
    **{f"a{i}": ("A", "B", "C", *"XY"[: i % 3]) for i in range(4)},
    **{f"d{i}": ("D", "E", "F", *"XY"[: i % 2]) for i in range(4)},
    "single": ("LONELY",),
}


def test_gene_sets():
    found = priors.embed_gene_sets(SETS, dim=3)
    assert found.genes == tuple("ABCDEFXY")
    similarity = cosine(found.vectors)
    assert similarity[:3, :3].min() > 0.95
    assert np.abs(similarity[:3, 3:6]).max() < 0.5
    assert signs_are_fixed(found.vectors)


@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_matrix, sp.csr_array])
def test_coexpression_approximates_correlations(make):
    rng = np.random.default_rng(3)
    factor = rng.normal(size=(200, 3))
    X = np.maximum(factor @ rng.normal(size=(3, 12)) + 0.3 * rng.normal(size=(200, 12)) + 1, 0)
    X[:, 4] = 2.0  # does not vary
    X[:, 7] = 0.0
    genes = [f"g{i}" for i in range(12)]
    found = priors.coexpression(make(X.astype(np.float32)), genes, dim=50)
    kept = [i for i in range(12) if i not in (4, 7)]
    assert found.genes == tuple(genes[i] for i in kept)
    assert found.vectors.shape == (10, 9)
    np.testing.assert_allclose(found.vectors @ found.vectors.T, np.corrcoef(X[:, kept].T), atol=0.03)
    assert signs_are_fixed(found.vectors)


def test_coexpression_components_equal_pca():
    rng = np.random.default_rng(4)
    X = rng.random((30, 9)) * np.arange(1, 10)
    _, singular, right = np.linalg.svd((X - X.mean(axis=0)) / X.std(axis=0), full_matrices=False)
    found = priors.coexpression(X, list("ABCDEFGHI"), dim=4)
    np.testing.assert_allclose(
        np.abs(found.vectors), np.abs(right[:4].T * singular[:4] / np.sqrt(30)), rtol=1e-4, atol=1e-6
    )


def test_tissue_profile(tmp_path):
    path = tmp_path / "tissue.tsv.gz"
    path.write_bytes(gzip.compress(b"symbol\tLiver\tBrain\nNA\t1\t5\nB\t2\t0\nC\t3\t1\n"))
    table = priors.read_tissue(path)
    found = priors.tissue_profile(table)
    assert found.genes == ("NA", "B", "C")
    np.testing.assert_allclose(found.vectors.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.vectors.std(axis=0), 1, atol=1e-6)
    np.testing.assert_allclose(found.vectors[:, 0], np.array([-1, 0, 1]) * np.sqrt(1.5), atol=1e-6)


def test_smiles(tmp_path):
    path = tmp_path / "smiles.csv"
    path.write_text('name,SMILES,path\nethanol,CCO,a\npropanol,CCCO,a\n"benzene, pure",c1ccccc1,b\nethanol,CCO,c\n')
    smiles = priors.read_smiles(path)
    assert smiles == {"ethanol": "CCO", "propanol": "CCCO", "benzene, pure": "c1ccccc1"}
    found = priors.embed_smiles(smiles, dim=256)
    similarity = cosine(found.vectors)
    assert similarity[0, 1] > 0.5 > abs(similarity[0, 2])
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    path.write_text("".join(f"{name},{text}\n" for name, text in (("a", "CC"), ("b", "CO"))))
    assert priors.read_smiles(path) == {"a": "CC", "b": "CO"}


def test_texts_are_read(tmp_path):
    path = tmp_path / "summary.tsv"
    path.write_text('symbol\tGene_summary\tmore\nNA\tsays "kinase, or so\tx\nB\t\ty\n')
    assert priors.read_table_text(path) == {"NA": 'says "kinase, or so', "B": ""}
    assert priors.read_table_text(path, "more") == {"NA": "x", "B": "y"}
    with pytest.raises(InputError, match=r"summary\.tsv has no column text"):
        priors.read_table_text(path, "text")


@pytest.mark.parametrize(
    ("reader", "text", "told"),
    [
        ("read_tissue", "g\ta\nA\t1\nA\t2\n", "more than once: A"),
        ("read_tissue", "g\ta\tb\nA\t1\thigh\n", "'high' for A in b"),
        ("read_tissue", "g\ta\tb\nA\t1\tinf\n", "'inf' for A in b"),
        ("read_table_text", "g\ttext\nA\tx\nA\ty\n", "more than once: A"),
        ("read_smiles", "a,CC\nb,\n", r"row 2 \(b\) lacks"),
        ("read_smiles", "a,CC\na,CO\n", "more than once: a"),
    ],
)
def test_bad_tables_are_refused(tmp_path, reader, text, told):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=told) as error:
        getattr(priors, reader)(path)
    assert str(path) in str(error.value)


def test_refusals_name_source_and_size():
    ppi, _ = planted()
    with pytest.raises(InputError, match="net: 80 genes have an edge, too few for 128"):
        priors.factorise_network(ppi)
    with pytest.raises(InputError, match=r"gene sets: .* give at most 7 dimensions, not 50"):
        priors.embed_gene_sets(SETS, dim=50)
    with pytest.raises(InputError, match="no set has two genes"):
        priors.embed_gene_sets({"s": ("A",)})
    with pytest.raises(InputError, match="texts: the 2 texts have no words in common"):
        priors.embed_texts({"A": "one kinase", "B": "two ribosomes"}, dim=1)
    with pytest.raises(InputError, match="3 gene names for 2 columns"):
        priors.coexpression(np.ones((4, 2)), list("ABC"))
    with pytest.raises(InputError, match="2 control cells"):
        priors.coexpression(np.ones((2, 2)), list("AB"))
    with pytest.raises(InputError, match="0 of 2 genes vary"):
        priors.coexpression(np.ones((4, 2)), list("AB"))
    with pytest.raises(InputError, match="Brain tells no genes apart"):
        priors.tissue_profile(pd.DataFrame({"Liver": [1.0, 2.0], "Brain": [3.0, 3.0]}, index=["A", "B"]))
    with pytest.raises(InputError, match="no SMILES for b"):
        priors.embed_smiles({"a": "CC", "b": " "})


@pytest.mark.realdata
def test_network_vectors_agree_with_the_given_ones(shared):
    anndata = pytest.importorskip("anndata")
    screen = anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad", backed="r")
    given = priors.read_embedding(shared / "priors" / "emb_string_netmf128.npz")
    whole = priors.read_ppi(shared / "priors" / "string_v11.5_min700.tsv.gz", min_score=700)
    # The network around part of the panel: the whole takes a minute.
    number = {gene: i for i, gene in enumerate(whole.genes)}
    seeds = np.zeros(len(whole.genes), bool)
    seeds[[number[gene] for gene in screen.var_names if gene in number]] = True
    degree = np.bincount(np.r_[whole.rows, whole.cols], minlength=len(seeds))
    kept = seeds | (degree > 100)
    place = np.cumsum(kept) - 1
    inside = kept[whole.rows] & kept[whole.cols]
    part = PPI(
        "part",
        tuple(np.array(whole.genes)[kept].tolist()),
        place[whole.rows[inside]].astype(np.int32),
        place[whole.cols[inside]].astype(np.int32),
        whole.scores[inside],
    )
    found = priors.factorise_network(part, dim=64)
    degree = dict(zip(part.genes, np.bincount(np.r_[part.rows, part.cols], minlength=len(part.genes)), strict=True))
    genes = [gene for gene in found.genes if gene in set(given.genes) and degree[gene] >= 10]
    one, two = priors.align(found, genes), priors.align(given, genes)
    both = one.mask & two.mask
    pairs = zip(neighbours(one.vectors[both]), neighbours(two.vectors[both]), strict=True)
    overlap = np.mean([len(a & b) / 10 for a, b in pairs])
    print(f"{both.sum()} genes, overlap of 10 nearest {overlap:.3f}, by chance {10 / both.sum():.3f}")
    assert overlap > 0.3 > 10 * 10 / both.sum()


@pytest.mark.realdata
def test_real_tables(shared):
    folder = shared / "priors"
    assert priors.tissue_profile(priors.read_tissue(folder / "gtex_tissue_log1p_tpm.tsv.gz")).vectors.shape == (
        18651,
        29,
    )
    path = folder / "refseq_summary_r220.tsv.gz"
    assert len(priors.read_table_text(path)) == gzip.decompress(path.read_bytes()).count(b"\n") - 1
    smiles = priors.read_smiles(folder / "sciplex_smiles.csv")
    assert len(smiles) == 188
    assert priors.embed_smiles(smiles).vectors.shape == (188, 1024)
