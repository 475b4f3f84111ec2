"""Modules: their names, whether their genes belong together."""

import re

import numpy as np
import pandas as pd
import pytest

from scbig.analysis.coherence import coherence, correlation
from scbig.analysis.modules import enriched, measures, name_modules, pretty
from scbig.errors import InputError
from scbig.modules import Modules


def modules_of(module, names=None):
    module = np.asarray(module, np.int64)
    rank = np.zeros(len(module), np.int64)
    for k in np.unique(module):
        rank[module == k] = np.arange((module == k).sum())
    genes = tuple(names or [f"GENE{i}" for i in range(len(module))])
    return Modules(genes, module, rank, np.zeros(len(module)))


def term(name, q, overlap=5, size=20):
    return {"term": name, "overlap": overlap, "term_genes": size, "module_genes": 9, "fold": 2.0, "p": q / 10, "q": q}


@pytest.mark.parametrize(
    ("term", "name"),
    [
        ("HALLMARK_TNFA_SIGNALING_VIA_NFKB", "TNFα signalling via NF-κB"),
        ("HALLMARK_INTERFERON_GAMMA_RESPONSE", "Interferon γ response"),
        ("HALLMARK_IL6_JAK_STAT3_SIGNALING", "IL6 JAK STAT3 signalling"),
        ("HALLMARK_TGF_BETA_SIGNALING", "TGFβ signalling"),
        ("HALLMARK_KRAS_SIGNALING_DN", "KRAS signalling (down)"),
        ("HALLMARK_G2M_CHECKPOINT", "G2/M checkpoint"),
        ("HALLMARK_HYPOXIA", "Hypoxia"),
        ("Interferon Signaling (R-HSA-913531)", "Interferon Signaling"),
        ("tRNA processing in the mitochondrion", "tRNA processing in the mitochondrion"),
        ("GO:0006955 immune response", "immune response"),
    ],
)
def test_terms_are_written_as_one_would(term, name):
    assert pretty(term) == name


def test_hallmark_names_before_reactome_before_go_whatever_their_q():
    audit = {"enrichment": {
        "go_2024": {"top": [[term("go term", 1e-9)], [term("go term", 1e-9)], [term("go term", 1e-9)]]},
        "ReactomePathways": {"top": [[term("Cell Cycle", 1e-3)], [term("Cell Cycle", 1e-3)], []]},
        "hallmark_v7": {"top": [[term("HALLMARK_HYPOXIA", 0.04)], [], []]},
    }}  # fmt: skip
    names = name_modules(modules_of([0, 1, 2]), audit)
    assert names == ("M0: Hypoxia", "M1: Cell Cycle", "M2: go term")


def test_the_least_q_names_and_ties_go_to_the_smaller_term():
    top = [[term("broad", 0.01, size=90), term("late", 0.02), term("narrow", 0.01, size=8)]]
    assert name_modules(modules_of([0]), {"enrichment": {"hallmark": {"top": top}}}) == ("M0: narrow",)


def test_modules_without_a_term_are_named_for_their_most_central_genes():
    modules = Modules(("B", "A", "LYZ", "C"), np.zeros(4, np.int64), np.array([2, 1, 0, 3]), np.zeros(4))
    assert name_modules(modules, {}) == ("M0: LYZ, A, B, …",)


def test_names_are_short_and_never_equal():
    long = "FASTK family proteins regulate processing and stability of mitochondrial RNAs"
    audit = {"enrichment": {"r": {"top": [[term(long, 0.01)], [term(long, 0.01)], []]}}}
    names = name_modules(modules_of([0, 1, 2], ["A", "B", "A_GENE_WITH_A_NAME_OF_FORTY_LETTERS_AND_ONE"]), audit)
    assert len(set(names)) == 3
    assert all(len(name) <= 32 for name in names)
    assert names[0].endswith("…")
    assert [re.match(r"M(\d+): ", name)[1] for name in names] == ["0", "1", "2"]


def test_correlation_is_numpys():
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    np.testing.assert_allclose(correlation(x), np.corrcoef(x.T), atol=1e-6)
    x[:, 2] = 1.0
    assert np.isnan(correlation(x)[2]).all()


def planted(seed=0, n=300, genes=40, strength=0.6):
    """Four modules; the genes of the first two share a factor each."""
    rng = np.random.default_rng(seed)
    module = np.repeat(np.arange(4), genes // 4)
    x = rng.normal(size=(n, genes))
    for k in (0, 1):
        x[:, module == k] += strength * rng.normal(size=(n, 1))
    return x.astype(np.float32), module


def test_within_and_between_are_means_of_correlations():
    x, module = planted()
    table = coherence(x, module, draws=5, permutations=5)
    c = np.corrcoef(x.T)
    for k in range(4):
        own = c[np.ix_(module == k, module == k)]
        assert table["within"][k] == pytest.approx(own[~np.eye(len(own), dtype=bool)].mean(), abs=1e-5)
        assert table["between"][k] == pytest.approx(c[np.ix_(module == k, module != k)].mean(), abs=1e-5)


def test_planted_modules_are_coherent_and_others_are_not():
    x, module = planted()
    table = coherence(x, module, draws=100, permutations=100).set_index("module")
    truth = 0.6**2 / (1 + 0.6**2)
    assert (table["q"][[0, 1]] < 0.05).all()
    assert (table["q"][[2, 3]] > 0.05).all()
    assert table["low"][0] < truth < table["high"][0]
    assert table["low"][2] < 0 < table["high"][2]
    assert table["p"][-1] < 0.05


def test_genes_of_like_expression_alone_make_no_coherent_module():
    """Strongly expressed genes share more; a module of those is not coherent for it."""
    rng = np.random.default_rng(1)
    mean = np.sort(rng.uniform(0, 4, 100))
    x = mean + (mean / 4) * rng.normal(size=(400, 1)) + rng.normal(size=(400, 100))
    module = (np.arange(100) // 25).astype(np.int64)
    table = coherence(x.astype(np.float32), module, draws=5, permutations=100)
    top = table.iloc[3]
    assert top["within"] > 0.3
    assert top["difference"] < top["expected"] + 4 * top["sd"]


def test_the_order_of_genes_does_not_matter():
    x, module = planted()
    order = np.random.default_rng(3).permutation(len(module))
    a, b = (
        coherence(x, module, draws=20, permutations=20),
        coherence(x[:, order], module[order], draws=20, permutations=20),
    )
    for name in ("within", "between", "difference", "low", "high"):
        np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_two_cells_are_refused():
    with pytest.raises(InputError, match="2 cells"):
        coherence(np.zeros((2, 4), np.float32), np.array([0, 0, 1, 1]))


def test_the_audit_becomes_tables():
    audit = {
        "n_genes": 4, "n_modules": 2, "sizes": [2, 2], "silhouette": None,
        "ppi": {"fold": 3.0, "z": 4.0, "p": 0.01, "connected": {"fold": 2.0, "z": 3.0, "p": 0.02}},
        "enrichment": {"hallmark": {"n_modules_enriched": 1, "top": [[term("HALLMARK_HYPOXIA", 0.01)], []]}},
    }  # fmt: skip
    table = measures(audit).set_index("measure")["value"]
    assert table["interactions, fold (all genes)"] == 3.0
    assert table["interactions, fold (genes with an interaction)"] == 2.0
    assert pd.isna(table["silhouette"])
    found = enriched(modules_of([0, 0, 1, 1]), audit)
    assert found[["module", "name", "collection", "q"]].to_numpy().tolist() == [[0, "M0: Hypoxia", "hallmark", 0.01]]
    assert list(enriched(modules_of([0, 1]), {}).columns) == list(found.columns)
