"""Gene-Relation Clustering on planted modules, its invariants, and its refusals."""

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

from scbig.errors import InputError
from scbig.modules import audit, balanced_kmeans, cluster, kmeans, random, soft_top2
from scbig.modules.clustering import _interaction_cost
from scbig.modules.spherical import normalize, spherical_kmeans


def planted(seed=0, n_genes=240, n_modules=8, dims=20, noise=0.5, within=0.3, between=0.005):
    """Genes in shuffled order: embeddings around module centres, and a graph denser within modules."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(np.arange(n_genes) % n_modules)
    vectors = rng.normal(size=(n_modules, dims))[truth] + noise * rng.normal(size=(n_genes, dims))
    density = np.where(truth[:, None] == truth[None, :], within, between)
    upper = np.triu(rng.random((n_genes, n_genes)) < density, k=1)
    graph = sp.csr_matrix((upper | upper.T).astype(np.float32))
    genes = [f"G{i:04d}" for i in rng.permutation(n_genes)]
    return vectors.astype(np.float32), np.ones(n_genes, bool), graph, genes, truth


class TestPlanted:
    @pytest.mark.parametrize("seed", range(3))
    def test_recovered_from_both_sources(self, seed):
        vectors, mask, graph, genes, truth = planted(seed)
        modules = cluster(vectors, mask, graph, genes, n_modules=8, seed=seed)
        assert adjusted_rand_score(truth, modules.module) >= 0.9

    def test_each_source_adds_to_the_other(self):
        vectors, mask, graph, genes, truth = planted(noise=2.0, within=0.15)
        score = {
            weights: adjusted_rand_score(
                truth,
                cluster(vectors, mask, graph, genes, n_modules=8, w_sem=weights[0], w_ppi=weights[1]).module,
            )
            for weights in [(1.0, 1.0), (1.0, 0.0)]
        }
        assert score[1.0, 1.0] > score[1.0, 0.0] + 0.1

    def test_a_gene_without_embedding_goes_where_its_partners_are(self):
        vectors, mask, graph, genes, truth = planted(within=0.5)
        hidden = np.random.default_rng(1).permutation(len(genes))[:40]
        mask[hidden] = False
        vectors[hidden] = np.nan  # must not be looked at
        modules = cluster(vectors, mask, graph, genes, n_modules=8)
        assert adjusted_rand_score(truth[hidden], modules.module[hidden]) > 0.9
        assert np.isnan(modules.distance[hidden]).all()
        assert np.isfinite(modules.distance[mask]).all()
        for k in range(8):  # unknown distances rank last
            inside = modules.module == k
            assert modules.rank[inside & ~mask].min(initial=99) > modules.rank[inside & mask].max()

    def test_genes_known_to_neither_source_fill_the_room(self):
        vectors, mask, graph, genes, truth = planted()
        lost = np.flatnonzero(truth == 0)[:10]
        mask[lost] = False
        graph = graph.tolil()
        graph[lost], graph[:, lost] = 0, 0
        modules = cluster(vectors, mask, graph.tocsr(), genes, n_modules=8)
        np.testing.assert_array_equal(modules.sizes, np.full(8, 30))
        rest = np.setdiff1d(np.arange(len(genes)), lost)
        assert adjusted_rand_score(truth[rest], modules.module[rest]) > 0.9

    def test_greedy_rounding_is_balanced_and_close_to_exact(self):
        vectors, mask, graph, genes, truth = planted(noise=1.0)
        exact, greedy = (
            cluster(vectors, mask, graph, genes, n_modules=8, rounding=rounding) for rounding in ("exact", "greedy")
        )
        np.testing.assert_array_equal(exact.sizes, greedy.sizes)
        assert adjusted_rand_score(truth, greedy.module) > 0.9
        # Objectives are in the same units: both start from the same k-means.
        assert min(exact.history) <= min(greedy.history) * 1.001
        # In the first round both round the same cost, and exact cannot be beaten there by much.
        assert exact.history[0] <= greedy.history[0] + 0.02 * abs(greedy.history[0])


class TestInvariants:
    @pytest.mark.parametrize(("n_genes", "n_modules"), [(50, 7), (33, 32), (20, 20), (9, 1), (5, 2)])
    def test_sizes_are_exact(self, n_genes, n_modules):
        vectors, mask, graph, genes, _ = planted(n_genes=n_genes, n_modules=min(n_modules, 5))
        modules = cluster(vectors, mask, graph, genes, n_modules=n_modules)
        assert sorted(set(modules.sizes)) == sorted({n_genes // n_modules, -(-n_genes // n_modules)})
        assert modules.sizes.sum() == n_genes

    def test_does_not_depend_on_the_order_of_the_genes(self):
        vectors, mask, graph, genes, _ = planted(noise=1.5)
        order = np.random.default_rng(5).permutation(len(genes))
        one = cluster(vectors, mask, graph, genes, n_modules=8)
        other = cluster(vectors[order], mask[order], graph[order][:, order], [genes[i] for i in order], n_modules=8)
        assert adjusted_rand_score(one.module, other.reorder(genes).module) == 1.0
        np.testing.assert_array_equal(one.rank, other.reorder(genes).rank)

    def test_same_seed_same_modules_other_seed_others(self):
        vectors, mask, graph, genes, _ = planted(noise=4.0, within=0.03)
        first, again, other = (cluster(vectors, mask, graph, genes, n_modules=8, seed=seed) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first.module, again.module)
        assert first.history == again.history
        assert not np.array_equal(first.module, other.module)

    def test_keeps_the_best_round_and_stops(self):
        vectors, mask, graph, genes, _ = planted(noise=2.0)
        whole = cluster(vectors, mask, graph, genes, n_modules=8, max_rounds=20)
        assert 1 < len(whole.history) <= 20
        best = int(np.argmin(whole.history))
        kept = np.minimum.accumulate(whole.history)
        assert (np.diff(kept) <= 0).all()
        # Fewer rounds see the same start of the history; the result is that of the best round.
        short = cluster(vectors, mask, graph, genes, n_modules=8, max_rounds=best + 1)
        assert short.history == whole.history[: best + 1]
        np.testing.assert_array_equal(short.module, whole.module)
        one = cluster(vectors, mask, graph, genes, n_modules=8, max_rounds=1)
        assert min(whole.history) <= one.history[0]

    def test_objective_is_the_mean_cost_of_the_partition(self):
        vectors, mask, graph, genes, _ = planted(noise=1.0)
        modules = cluster(vectors, mask, graph, genes, n_modules=8, w_ppi=0.0, standardize=False)
        # Without interactions: the mean distance to the centroid over the largest distance at the start.
        ratio = min(modules.history) / modules.distance.mean()
        assert 1 / 2 < ratio < 1
        both = cluster(vectors, mask, graph, genes, n_modules=8, standardize=False)
        share = [
            graph[i, np.flatnonzero(both.module == both.module[i])].sum() / (both.sizes[both.module[i]] - 1)
            for i in range(len(genes))
        ]
        expected = ratio * both.distance.mean() + 1 - np.mean(share)
        assert min(both.history) == pytest.approx(expected, rel=1e-4)

    def test_neighbouring_modules_are_similar(self):
        # Centres on an arc: the order of modules must follow it, in one direction or the other.
        angle = np.repeat(np.linspace(0, np.pi / 2, 6), 20)
        rng = np.random.default_rng(0)
        order = rng.permutation(len(angle))
        vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1)[order].astype(np.float32)
        genes = [f"G{i:03d}" for i in range(len(order))]
        modules = cluster(vectors, np.ones(120, bool), None, genes, n_modules=6)
        centres = np.array([angle[order][modules.module == k].mean() for k in range(6)])
        steps = np.diff(centres)
        assert (steps > 0).all() or (steps < 0).all()

    def test_rank_follows_the_distance(self):
        vectors, mask, graph, genes, _ = planted()
        modules = cluster(vectors, mask, graph, genes, n_modules=8)
        unit = normalize(vectors)
        for k in range(8):
            inside = np.flatnonzero(modules.module == k)
            centre = unit[inside].mean(axis=0)
            distance = 1 - unit[inside] @ centre / np.linalg.norm(centre)
            np.testing.assert_allclose(modules.distance[inside], distance, atol=1e-5)
            assert (np.diff(modules.distance[inside][np.argsort(modules.rank[inside])]) >= 0).all()


def test_interaction_cost_leaves_the_gene_itself_out():
    _, _, graph, _, _ = planted(n_genes=30, n_modules=3, within=0.5)
    labels = np.arange(30) % 3
    labels[4] = -1  # not placed yet
    cost = _interaction_cost(graph, labels, 3)
    dense = graph.toarray()
    for i in range(30):
        for k in range(3):
            others = [j for j in range(30) if labels[j] == k and j != i]
            assert cost[i, k] == pytest.approx(1 - dense[i, others].mean(), abs=1e-6)


class TestSphericalKmeans:
    def test_no_module_is_empty_even_with_repeated_rows(self):
        unit = normalize(np.repeat(np.eye(3, dtype=np.float32), 5, axis=0))
        labels = spherical_kmeans(unit, 7, np.random.default_rng(0))
        assert set(labels) == set(range(7))

    def test_is_no_worse_than_sklearn(self):
        from sklearn.cluster import KMeans

        vectors = planted(noise=1.0)[0]
        unit = normalize(vectors)
        labels = spherical_kmeans(unit, 8, np.random.default_rng(0))
        theirs = KMeans(8, n_init=4, random_state=0).fit_predict(unit)

        def score(values):
            return sum(np.linalg.norm(unit[values == k].sum(axis=0)) for k in range(8))

        assert score(labels) > 0.99 * score(theirs)


class TestBaselines:
    def test_balanced_kmeans_recovers_planted_modules(self):
        vectors, mask, _, genes, truth = planted()
        modules = balanced_kmeans(vectors, mask, genes, n_modules=8)
        np.testing.assert_array_equal(modules.sizes, np.full(8, 30))
        assert adjusted_rand_score(truth, modules.module) > 0.9

    def test_kmeans_finds_modules_of_unequal_size(self):
        rng = np.random.default_rng(0)
        truth = np.repeat([0, 1, 2], [60, 25, 5])
        vectors = (np.eye(3)[truth] + 0.1 * rng.normal(size=(90, 3))).astype(np.float32)
        genes = [f"G{i:02d}" for i in range(90)]
        mask = np.ones(90, bool)
        modules = kmeans(vectors, mask, genes, n_modules=3)
        assert adjusted_rand_score(truth, modules.module) == 1.0
        assert sorted(modules.sizes) == [5, 25, 60]
        mask[:4] = False
        assert sorted(kmeans(vectors, mask, genes, n_modules=3).sizes) == [9, 25, 56]

    def test_random_is_balanced_unrelated_and_needs_no_embedding(self):
        vectors, mask, _, genes, truth = planted()
        modules = random(vectors, mask, genes, n_modules=8, seed=1)
        np.testing.assert_array_equal(modules.sizes, np.full(8, 30))
        assert abs(adjusted_rand_score(truth, modules.module)) < 0.05
        again = random(vectors, np.zeros(len(genes), bool), genes, n_modules=8, seed=1)
        assert adjusted_rand_score(modules.module, again.module) == 1.0
        other = random(vectors, mask, genes, n_modules=8, seed=2)
        assert adjusted_rand_score(modules.module, other.module) < 0.2

    def test_soft_top2_gives_the_nearest_other_module(self):
        rng = np.random.default_rng(0)
        angle = np.concatenate([np.repeat(np.array([0.0, 1.0, 2.0]), 10), [0.45]])
        angle[:30] += 0.01 * rng.normal(size=30)
        vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
        genes = [f"G{i:02d}" for i in range(31)]
        soft = soft_top2(vectors, np.ones(31, bool), genes, n_modules=3, temperature=0.1)
        hard = balanced_kmeans(vectors, np.ones(31, bool), genes, n_modules=3)
        np.testing.assert_array_equal(soft.module, hard.module)
        left, middle, right = soft.module[0], soft.module[10], soft.module[20]
        assert set(soft.extra[:10]) == {middle} and set(soft.extra[20:30]) == {middle}
        assert soft.module[30] == left and soft.extra[30] == middle and right != left
        # The gene between two modules is the least certain.
        assert 0.5 <= soft.weight[30] < 0.7 < soft.weight[:30].min()
        sharper = soft_top2(vectors, np.ones(31, bool), genes, n_modules=3, temperature=0.01)
        assert (sharper.weight >= soft.weight).all()

    def test_soft_top2_refuses_one_module(self):
        vectors, mask, _, genes, _ = planted(n_genes=10, n_modules=2)
        with pytest.raises(InputError, match="not 1"):
            soft_top2(vectors, mask, genes, n_modules=1)


class TestRefusals:
    @pytest.fixture
    def case(self):
        vectors, mask, graph, genes, _ = planted(n_genes=20, n_modules=2)
        return {"vectors": vectors, "mask": mask, "adjacency": graph, "genes": genes, "n_modules": 4}

    def test_more_modules_than_genes(self, case):
        with pytest.raises(InputError, match="21 modules of 20 genes"):
            cluster(**{**case, "n_modules": 21})
        with pytest.raises(InputError, match="0 modules of 20 genes"):
            cluster(**{**case, "n_modules": 0})

    def test_more_modules_than_genes_with_an_embedding(self, case):
        with pytest.raises(InputError, match="only 3 genes with an embedding"):
            cluster(**{**case, "mask": np.arange(20) < 3})

    def test_repeated_genes(self, case):
        case["genes"][3] = case["genes"][5]
        with pytest.raises(InputError, match=f"more than once: {case['genes'][5]}"):
            cluster(**case)

    def test_lengths(self, case):
        with pytest.raises(InputError, match="19 genes but 20 vectors"):
            cluster(**{**case, "genes": case["genes"][:-1]})
        with pytest.raises(InputError, match=r"shape \(19, 19\) for 20 genes"):
            cluster(**{**case, "adjacency": case["adjacency"][:19, :19]})

    def test_embeddings_that_are_not_finite(self, case):
        case["vectors"][7, 0] = np.inf
        with pytest.raises(InputError, match=f"{case['genes'][7]} are not finite"):
            cluster(**case)

    def test_graphs_that_are_not_undirected(self, case):
        graph = case["adjacency"].tolil()
        graph[2, 9], graph[9, 2] = 1, 0
        with pytest.raises(InputError, match=rf"not symmetric.*({case['genes'][2]}|{case['genes'][9]})"):
            cluster(**{**case, "adjacency": graph.tocsr()})
        graph[9, 2], graph[4, 4] = 1, 1
        with pytest.raises(InputError, match=f"interact with themselves: {case['genes'][4]}"):
            cluster(**{**case, "adjacency": graph.tocsr()})

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"rounding": "best"}, "'best'"),
            ({"w_sem": 0.0, "w_ppi": 0.0}, "not both zero"),
            ({"w_ppi": -1.0}, "w_ppi=-1.0"),
            ({"epsilon": 0.0}, "epsilon=0.0"),
            ({"max_rounds": 0}, "max_rounds=0"),
        ],
    )
    def test_settings(self, case, setting, message):
        with pytest.raises(InputError, match=message):
            cluster(**case, **setting)


@pytest.mark.realdata
def test_norman_panel(shared, record_property):
    """On the real priors: interactions within modules beyond chance and beyond embeddings alone."""
    import anndata
    import pandas as pd

    genes = list(anndata.read_h5ad(shared / "data" / "norman2019_effects.h5ad").var_names)
    blocks = []
    for name in ("emb_refseq_lsa256", "emb_go_svd128"):
        with np.load(shared / "priors" / f"{name}.npz") as file:
            table = pd.DataFrame(file["vectors"].astype(np.float32), index=file["genes"])
        blocks.append(normalize(table.reindex(genes).fillna(0).to_numpy(np.float32)))
    vectors = np.concatenate(blocks, axis=1)
    mask = vectors.any(axis=1)
    place = {gene: i for i, gene in enumerate(genes)}
    edges = pd.read_csv(shared / "priors" / "string_v11.5_min700.tsv.gz", sep="\t").iloc[:, :2]
    ends = edges.apply(lambda column: column.map(place)).dropna().to_numpy(int)
    graph = sp.coo_matrix((np.ones(len(ends), np.float32), ends.T), shape=(len(genes),) * 2).tocsr()
    graph = (graph + graph.T > 0).astype(np.float32)
    modules = cluster(vectors, mask, graph, genes, n_modules=32)
    np.testing.assert_array_equal(np.sort(modules.sizes), np.repeat([62, 63], [16, 16]))
    hallmark = {
        fields[0]: fields[2:]
        for fields in (line.split("\t") for line in (shared / "priors" / "hallmark_v7.0.gmt").read_text().splitlines())
    }
    report = audit(modules, graph, {"hallmark": hallmark}, vectors=vectors, mask=mask)
    record_property("ppi_z", report["ppi"]["z"])
    assert report["ppi"]["z"] > 100
    assert report["ppi"]["fold"] > 15
    assert report["ppi"]["connected"]["z"] > 100
    assert report["enrichment"]["hallmark"]["n_significant"] >= 15
    alone = audit(balanced_kmeans(vectors, mask, genes, n_modules=32), graph, {})
    assert report["ppi"]["density"] > 1.5 * alone["ppi"]["density"]
    chance = audit(random(vectors, mask, genes, n_modules=32), graph, {})
    assert abs(chance["ppi"]["z"]) < 4
