"""The audit against scipy, scikit-learn, and planted answers."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.stats import false_discovery_control, fisher_exact

from scbig.errors import InputError
from scbig.modules import Modules, audit
from scbig.modules.audit import benjamini_hochberg, enrichment, interaction_density, silhouette, stability


def partition(labels, genes=None):
    labels = np.asarray(labels)
    rank = np.array([int((labels[:i] == k).sum()) for i, k in enumerate(labels)])
    genes = genes or [f"G{i:03d}" for i in range(len(labels))]
    return Modules(tuple(genes), labels, rank, np.full(len(labels), np.nan))


def random_graph(labels, within, between, seed=0):
    rng = np.random.default_rng(seed)
    density = np.where(labels[:, None] == labels[None, :], within, between)
    upper = np.triu(rng.random(density.shape) < density, k=1)
    return sp.csr_matrix((upper | upper.T).astype(np.float32))


class TestInteractionDensity:
    labels = np.arange(120) % 6

    def test_counts_pairs(self):
        graph = random_graph(self.labels, 0.3, 0.02)
        dense = graph.toarray()
        pairs = [(i, j) for j in range(120) for i in range(j) if self.labels[i] == self.labels[j]]
        result = interaction_density(self.labels, graph)
        assert result["density"] == pytest.approx(np.mean([dense[i, j] for i, j in pairs]))
        assert result["n_edges"] == dense.sum() / 2
        # The expectation over permutations is the density of the whole graph.
        assert result["expected"] == pytest.approx(dense.sum() / (120 * 119), rel=0.05)
        assert result["fold"] == pytest.approx(result["density"] / result["expected"])
        assert result["z"] == pytest.approx((result["density"] - result["expected"]) / result["sd"])

    def test_planted_graph_stands_out_and_chance_does_not(self):
        strong = interaction_density(self.labels, random_graph(self.labels, 0.3, 0.02))
        assert strong["z"] > 20 and strong["p"] == pytest.approx(1 / 101)
        z = [interaction_density(self.labels, random_graph(self.labels, 0.1, 0.1, s))["z"] for s in range(20)]
        assert abs(np.mean(z)) < 1 and 0.4 < np.std(z) < 2

    def test_connected_is_not_fooled_by_gathering_unknown_genes(self):
        # Edges at random among the first 60 genes; a partition that merely separates them from the rest.
        labels = np.repeat([0, 1], 60)
        graph = random_graph(np.r_[np.zeros(60, int), np.arange(1, 61)], 0.2, 0.0)
        result = interaction_density(labels, graph)
        assert result["z"] > 10
        assert result["connected"]["n_genes"] == 60
        assert result["connected"]["z"] is None  # all connected genes in one module: nothing can vary

    def test_permutations_are_seeded(self):
        graph = random_graph(self.labels, 0.3, 0.02)
        one, again, other = (interaction_density(self.labels, graph, seed=seed) for seed in (0, 0, 1))
        assert one == again != other

    def test_refuses_a_graph_of_other_genes(self):
        with pytest.raises(InputError, match=r"\(3, 3\) for 120 genes"):
            interaction_density(self.labels, sp.csr_matrix((3, 3)))
        with pytest.raises(InputError, match="n_permutations=1"):
            interaction_density(self.labels, sp.csr_matrix((120, 120)), n_permutations=1)


class TestEnrichment:
    def case(self):
        rng = np.random.default_rng(0)
        modules = partition(np.arange(80) % 4)
        terms = {f"t{i}": [f"G{j:03d}" for j in rng.permutation(70)[: rng.integers(6, 15)]] for i in range(10)}
        terms["planted"] = [f"G{j:03d}" for j in range(0, 60, 4)] + ["NOT_IN_PANEL"]  # all of module 0
        return modules, terms

    def test_hypergeometric_test_equals_fishers(self):
        modules, terms = self.case()
        result = enrichment(modules, terms, alpha=1.1, n_top=100)
        universe = sorted({gene for genes in terms.values() for gene in genes} & set(modules.genes))
        assert result["n_universe"] == len(universe) <= 70
        label = dict(zip(modules.genes, modules.module.tolist(), strict=True))
        checked = 0
        for k, rows in enumerate(result["top"]):
            assert len(rows) == len(terms)
            for row in rows:
                inside = set(terms[row["term"]]) & set(universe)
                module = {gene for gene in universe if label[gene] == k}
                both = len(inside & module)
                table = [
                    [both, len(inside) - both],
                    [len(module) - both, len(universe) - len(inside) - len(module) + both],
                ]
                assert row["p"] == pytest.approx(fisher_exact(table, "greater").pvalue)
                assert row["fold"] == pytest.approx(both / (len(inside) * len(module) / len(universe)))
                assert (row["overlap"], row["term_genes"], row["module_genes"]) == (
                    both,
                    len(inside),
                    len(module),
                )
                checked += 1
        assert checked == result["n_tests"] == 4 * len(terms)
        p = np.array([row["p"] for rows in result["top"] for row in rows])
        q = np.array([row["q"] for rows in result["top"] for row in rows])
        np.testing.assert_allclose(q, false_discovery_control(p), rtol=1e-10)

    def test_finds_the_planted_term_and_only_that(self):
        result = enrichment(*self.case())
        assert result["top"][0][0]["term"] == "planted"
        assert result["n_significant"] == result["n_modules_enriched"] == 1
        assert result["top"][1:] == [[], [], []]

    def test_terms_too_small_or_too_large_are_not_tested(self):
        modules, terms = self.case()
        assert enrichment(modules, terms, min_genes=15)["n_terms"] == 1
        assert enrichment(modules, terms, max_genes=14)["n_terms"] == 10

    def test_a_collection_without_genes_of_the_panel(self):
        result = enrichment(partition([0, 1, 0, 1]), {"far": ["X", "Y"]})
        assert result["n_universe"] == result["n_tests"] == result["n_significant"] == 0
        assert result["top"] == [[], []]
        assert enrichment(partition([0, 1]), {})["n_terms"] == 0


def test_benjamini_hochberg_equals_scipy():
    p = np.random.default_rng(0).uniform(size=200) ** 3
    p[10:20] = p[0]
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p))
    assert len(benjamini_hochberg(np.zeros(0))) == 0


class TestSilhouette:
    def test_equals_sklearn(self):
        from sklearn.metrics import silhouette_score

        rng = np.random.default_rng(0)
        labels = np.concatenate([rng.integers(0, 5, 100), [9]])  # one module holds a single gene
        vectors = (rng.normal(size=(10, 6))[labels] + 0.5 * rng.normal(size=(101, 6))).astype(np.float32)
        expected = silhouette_score(vectors, labels, metric="cosine")
        assert silhouette(vectors, labels) == pytest.approx(expected, abs=1e-5)

    def test_does_not_exist_for_one_module(self):
        assert np.isnan(silhouette(np.ones((4, 2), np.float32), np.zeros(4, int)))


class TestStability:
    def test_is_one_up_to_names_and_order(self):
        modules = partition([0, 0, 1, 1, 2, 2])
        renamed = partition([2, 2, 0, 0, 1, 1]).reorder(modules.genes[::-1])
        assert stability([modules, renamed]) == {"n": 2, "ari_mean": 1.0, "ari_min": 1.0}

    def test_mean_and_least_over_pairs(self):
        from sklearn.metrics import adjusted_rand_score

        rng = np.random.default_rng(0)
        labels = [rng.permutation(np.arange(30) % 3) for _ in range(3)]
        scores = [adjusted_rand_score(labels[i], labels[j]) for i, j in [(0, 1), (0, 2), (1, 2)]]
        result = stability([partition(each) for each in labels])
        assert result["ari_mean"] == pytest.approx(np.mean(scores))
        assert result["ari_min"] == pytest.approx(min(scores))

    def test_refuses_other_genes_and_single_partitions(self):
        with pytest.raises(InputError, match="no module: G002"):
            stability([partition([0, 1, 0]), partition([0, 1])])
        with pytest.raises(InputError, match="at least two"):
            stability([partition([0, 1])])


def test_audit_is_json_and_has_what_was_given():
    labels = np.arange(60) % 3
    modules = partition(labels)
    rng = np.random.default_rng(0)
    vectors = (np.eye(3)[labels] + 0.2 * rng.normal(size=(60, 3))).astype(np.float32)
    mask = np.arange(60) > 5
    vectors[~mask] = 0
    result = audit(
        modules,
        random_graph(labels, 0.4, 0.02),
        {"own": {"module 0": [modules.genes[i] for i in np.flatnonzero(labels == 0)], "rest": modules.genes}},
        vectors=vectors,
        mask=mask,
        others=[modules],
        n_permutations=20,
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["sizes"] == [20, 20, 20]
    assert result["ppi"]["z"] > 5 and result["ppi"]["n_permutations"] == 20
    assert result["enrichment"]["own"]["top"][0][0]["term"] == "module 0"
    assert result["silhouette"] == pytest.approx(silhouette(vectors[mask], labels[mask]))
    assert result["stability"]["ari_min"] == 1.0
    bare = audit(modules, None, {})
    assert "ppi" not in bare and "enrichment" not in bare and "silhouette" not in bare
    # A graph without edges has no z, which must not become NaN in a file.
    json.dumps(audit(modules, sp.csr_matrix((60, 60)), {}), allow_nan=False)
