"""Population metrics against plain loops, scipy and ott, and what must not change them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from scipy.stats import wasserstein_distance

from scbig import ot
from scbig.errors import InputError
from scbig.evaluation import Space, distribution, e_distance, populations
from scbig.evaluation.distribution import self_transport, squared_distances, transport
from scbig.evaluation.populations import POPULATION_METRICS, Population, Reference, Yardstick

# ott imports an unmaintained package, which says so; nothing of ours imports it.
pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")

GENES = [f"g{i}" for i in range(30)]
MODULES = np.arange(30) % 5 - 1  # one in five genes belongs to no module


def cells(rng, n, shift=0.0, scale=1.0):
    factors = np.random.default_rng(7).normal(size=(4, 30))
    x = rng.normal(size=(n, 4)) @ factors + 0.5 * rng.normal(size=(n, 30))
    return (3.0 + shift + scale * x).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def yardstick():
    return Yardstick.fit(cells(np.random.default_rng(1), 300), GENES, modules=MODULES)


def line():
    """A yardstick whose space is the one gene."""
    space = Space(("a",), np.zeros(1), np.ones((1, 1)), np.ones(1))
    return Yardstick(space, (1.0,), 0.1, 0.05, np.array([0]))


class TestYardstick:
    def test_widths_and_epsilon_are_those_of_training_cells(self):
        x = cells(np.random.default_rng(1), 60)
        y = Yardstick.fit(sp.csr_matrix(x), GENES)
        at = y.space.project(x)
        pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(at, 2)]
        np.testing.assert_allclose(y.bandwidths, np.array([4, 2, 1, 0.5, 0.25]) * np.median(pairs))
        assert y.epsilon == pytest.approx(0.5 * np.mean(np.square(pairs)))
        assert y.relative_epsilon == 0.5

    def test_variable_genes(self, rng):
        x = rng.normal(size=(100, 6)) * np.array([1.0, 5.0, 0.0, 3.0, 2.0, 4.0]) + 10.0
        for form in (np.asarray, sp.csr_matrix, sp.csr_array):
            y = Yardstick.fit(form(x), list("abcdef"), n_variable=3)
            assert y.variable.tolist() == [1, 5, 3]
        everything = Yardstick.fit(x, list("abcdef"))
        assert everything.variable.tolist() == [1, 5, 3, 4, 0]  # what does not vary is not there

    def test_seeded_subsample_stands_for_all(self, monkeypatch, rng):
        x = cells(rng, 400)
        whole = Yardstick.fit(x, GENES)
        monkeypatch.setattr(populations, "_FITTED", 150)
        part, again = Yardstick.fit(x, GENES, seed=1), Yardstick.fit(x, GENES, seed=1)
        assert part.epsilon == again.epsilon != Yardstick.fit(x, GENES, seed=2).epsilon
        assert part.epsilon == pytest.approx(whole.epsilon, rel=0.15)
        np.testing.assert_allclose(part.bandwidths, whole.bandwidths, rtol=0.15)

    def test_given_space_is_aligned(self, rng):
        x = cells(rng, 50)
        space = Space.fit(x, 3, genes=GENES)
        turned = Yardstick.fit(x[:, ::-1], GENES[::-1], space)
        assert turned.space.genes == tuple(GENES[::-1])
        assert turned.epsilon == pytest.approx(Yardstick.fit(x, GENES, space).epsilon)

    def test_refusals(self, rng):
        x = cells(rng, 20)
        with pytest.raises(InputError, match="modules of 3 genes do not fit cells of 30 genes"):
            Yardstick.fit(x, GENES, modules=np.zeros(3, int))
        with pytest.raises(InputError, match="most real training cells are equal"):
            Yardstick.fit(np.ones((5, 30)), GENES)
        with pytest.raises(InputError, match="at least two"):
            Yardstick.fit(x[:1], GENES)
        with pytest.raises(InputError, match="does not name its genes"):
            Yardstick(Space.fit(x, 3), (1.0,), 0.1, 0.05, np.array([0]))
        with pytest.raises(InputError, match="29 genes do not fit a yardstick of 30"):
            Reference(x[:, :29], Yardstick.fit(x, GENES))


class TestPairs:
    def test_e_distance_is_that_function(self, rng, yardstick):
        x, y = cells(rng, 25, 0.5), cells(rng, 31)
        project = yardstick.space.project
        expected = e_distance(project(x, ["g2"]), project(y, ["g2"]))
        assert Reference(y, yardstick, ["g2"]).score(x)["e_distance"] == pytest.approx(expected, abs=1e-9)

    def test_mmd_matches_a_double_loop(self, rng, yardstick):
        x, y = cells(rng, 12, 0.5), cells(rng, 9, scale=2.0)

        def mean(a, b, same):
            values = [
                np.mean([np.exp(-((p - q) @ (p - q)) / (2 * h * h)) for h in yardstick.bandwidths])
                for i, p in enumerate(a)
                for j, q in enumerate(b)
                if not (same and i == j)
            ]
            return np.mean(values)

        a, b = yardstick.space.project(x), yardstick.space.project(y)
        expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
        assert Reference(y, yardstick).score(x)["mmd"] == pytest.approx(expected, abs=1e-10)
        odd = replace(yardstick, bandwidths=(5.0, 1.7, 1.0))
        a, yardstick = a, odd
        expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
        assert Reference(y, odd).score(x)["mmd"] == pytest.approx(expected, abs=1e-10)

    def test_mmd_is_unbiased(self, yardstick):
        rng = np.random.default_rng(3)
        same = [Reference(cells(rng, 20), yardstick).score(cells(rng, 20))["mmd"] for _ in range(150)]
        assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(150)
        assert min(same) < 0 < max(same)
        other = [Reference(cells(rng, 20), yardstick).score(cells(rng, 20, 1.0))["mmd"] for _ in range(20)]
        assert np.mean(other) > 3 * np.std(same)

    def test_many_cells_go_block_by_block(self, monkeypatch, rng, yardstick):
        x, y = cells(rng, 40, 0.5), cells(rng, 50)
        whole = Reference(y, yardstick).score(x)
        monkeypatch.setattr(distribution, "_CHUNK", 300)
        monkeypatch.setattr(populations, "_VALUES", 300)
        monkeypatch.setattr(populations, "_MOST", 30)
        parts = Reference(y, yardstick).score(x)
        for name in set(POPULATION_METRICS) - {"wasserstein", "sinkhorn_divergence"}:
            assert parts[name] == pytest.approx(whole[name], abs=1e-10), name
        assert parts["wasserstein"] == pytest.approx(whole["wasserstein"], rel=0.3)
        assert parts["wasserstein"] != whole["wasserstein"]
        assert parts == pytest.approx(Reference(y[::-1], yardstick).score(x[rng.permutation(40)]), abs=1e-9)


class TestTransport:
    def test_wasserstein_on_a_line_equals_scipy(self, rng):
        x, y = rng.normal(size=(40, 1)), rng.normal(1.0, 2.0, size=(40, 1))
        assert Reference(y, line()).score(x)["wasserstein"] == pytest.approx(
            wasserstein_distance(x[:, 0], y[:, 0]), abs=1e-12
        )

    def test_wasserstein_equals_ott(self, rng, yardstick):
        from ott.tools import unreg

        x, y = cells(rng, 35, 0.5), cells(rng, 35, scale=1.5)
        a, b = (yardstick.space.project(v).astype(np.float32) for v in (x, y))
        expected = unreg.wassdis_p(a, b, p=1.0)
        assert Reference(y, yardstick).score(x)["wasserstein"] == pytest.approx(float(expected), rel=1e-4)

    def test_unequal_counts_draw_from_the_larger(self, rng, yardstick):
        x, y = cells(rng, 30), cells(rng, 90)
        value = Reference(y, yardstick).score(x)["wasserstein"]
        assert value == pytest.approx(Reference(x, yardstick).score(y)["wasserstein"], abs=1e-10)
        # A draw of 30 that holds the same 30 cells is matched perfectly: repeat every cell three times over.
        assert Reference(np.repeat(x, 2, axis=0), yardstick).score(x)["wasserstein"] < 0.8 * value

    @pytest.mark.parametrize("fraction", [0.02, 0.1, 1.0])
    def test_divergence_equals_the_log_domain_one(self, rng, yardstick, fraction):
        x, y = cells(rng, 30, 0.7), cells(rng, 40)
        a, b = (yardstick.space.project(v) for v in (x, y))
        epsilon = fraction * np.median(squared_distances(a, b))
        expected = ot.divergence(a.astype(np.float32), b.astype(np.float32), fraction, iterations=2000)
        value = Reference(y, replace(yardstick, epsilon=float(epsilon))).score(x)["sinkhorn_divergence"]
        assert value == pytest.approx(float(expected), rel=2e-3)

    def test_divergence_equals_ott(self, rng, yardstick):
        import jax
        from ott.geometry import pointcloud
        from ott.tools import sinkhorn_divergence

        x, y = cells(rng, 30, 0.7), cells(rng, 40)
        a, b = (yardstick.space.project(v).astype(np.float32) for v in (x, y))

        @jax.jit
        def divergence(a, b):
            options = {"max_iterations": 5000}
            cloud, epsilon = pointcloud.PointCloud, yardstick.epsilon
            return sinkhorn_divergence.sinkhorn_divergence(cloud, x=a, y=b, epsilon=epsilon, solve_kwargs=options)[0]

        with jax.numpy_rank_promotion("allow"):
            expected = divergence(a, b)
        assert Reference(y, yardstick).score(x)["sinkhorn_divergence"] == pytest.approx(float(expected), rel=5e-3)

    def test_divergence_is_zero_for_equals_and_positive_otherwise(self, rng, yardstick):
        x = cells(rng, 40)
        scale = yardstick.epsilon / yardstick.relative_epsilon
        assert abs(Reference(x, yardstick).score(x)["sinkhorn_divergence"]) < 1e-6 * scale
        values = [Reference(x, yardstick).score(x + np.float32(s))["sinkhorn_divergence"] for s in (0.01, 0.1, 1.0)]
        assert 0 < values[0] < values[1] < values[2]

    def test_far_cells_and_tiny_epsilon_do_not_underflow(self, rng, yardstick):
        # Here exp(−cost/ε) is exactly zero in every entry.
        x, y = cells(rng, 20), cells(rng, 20, 60.0)
        score = Reference(y, yardstick).score(x)
        assert score["sinkhorn_divergence"] == pytest.approx(30 * 60.0**2, rel=0.1)
        a, b = yardstick.space.project(x), yardstick.space.project(cells(rng, 20))
        cost = squared_distances(a, b)
        best, tight = cost[linear_sum_assignment(cost)].mean(), float(1e-3 * cost.mean())
        assert best <= transport(cost, tight) <= best + tight * np.log(20) + 1e-9
        assert np.isfinite(transport(cost, 1e-3 * tight))
        assert self_transport(squared_distances(a, a), tight) == pytest.approx(tight * np.log(20), rel=1e-3)

    def test_absorbing_scalings_changes_nothing(self, monkeypatch, rng):
        cost = squared_distances(rng.normal(size=(25, 3)), rng.normal(2.0, 1.0, size=(30, 3)))
        plain = transport(cost, 0.05)
        monkeypatch.setattr(distribution, "_WIDEST", 1.5)
        assert transport(cost, 0.05) == pytest.approx(plain, abs=1e-9)


class TestSpread:
    def test_variance_ratio(self, rng, yardstick):
        y = cells(rng, 50)
        mean = y.mean(axis=0, dtype=np.float64)
        score = Reference(y, yardstick).score
        assert score(mean + np.sqrt(3.0) * (y - mean))["variance_ratio"] == pytest.approx(3.0, rel=1e-6)
        assert score(np.tile(mean, (50, 1)))["variance_ratio"] == pytest.approx(0.0, abs=1e-12)
        # The number of cells does not matter: twice the same ones have the same unbiased variance, nearly.
        assert score(np.tile(y, (2, 1)))["variance_ratio"] == pytest.approx(2 * 49 / 99, rel=1e-6)

    @staticmethod
    def left(r, n, q, m):
        """Squared difference of two correlation matrices less its noise, signed root, by loops."""
        total = 0.0
        for i in range(len(r)):
            for j in range(len(r)):
                if i != j:
                    total += (r[i, j] - q[i, j]) ** 2
                    total -= (1 - r[i, j] ** 2) ** 2 / (n - 1) + (1 - q[i, j] ** 2) ** 2 / (m - 1)
        return np.sign(total) * np.sqrt(abs(total)) / len(r)

    def test_coexpression_error_by_hand(self, rng, yardstick):
        x, y = cells(rng, 40).astype(np.float64), cells(rng, 50).astype(np.float64)
        kept = [i for i in yardstick.variable if i not in (4, 11)]
        expected = self.left(np.corrcoef(x[:, kept].T), 40, np.corrcoef(y[:, kept].T), 50)
        score = Reference(y, yardstick, ["g4", "g11", "absent"]).score(x)
        assert score["coexpression_error"] == pytest.approx(expected, abs=1e-10)

        def means(v):
            own = [[i for i in range(30) if MODULES[i] == k and i not in (4, 11)] for k in range(4)]
            return np.corrcoef([v[:, o].mean(axis=1) for o in own])

        expected = self.left(means(x), 40, means(y), 50)
        assert score["coexpression_error_modules"] == pytest.approx(expected, abs=1e-10)

    def test_coexpression_error_is_unbiased(self, yardstick):
        """Two draws of one population differ by nothing, on average, whatever their number."""
        found = []
        for seed in range(40):
            rng = np.random.default_rng(seed)
            mix = np.linspace(1, -1, 30) * rng.normal(size=(60, 1)) + rng.normal(size=(60, 30))
            error = Reference(mix[:25], yardstick).score(mix[25:])["coexpression_error"]
            found.append(np.sign(error) * error**2)
        assert abs(np.mean(found)) < 3 * np.std(found) / np.sqrt(40) + 0.002

    def test_shuffling_genes_shows_in_coexpression_only(self, rng, yardstick):
        y = cells(rng, 200)
        shuffled = rng.permuted(y, axis=0)
        same, broken = Reference(y, yardstick).score(y), Reference(y, yardstick).score(shuffled)
        assert same["coexpression_error"] < 0 and same["coexpression_error_modules"] < 0  # less than noise would do
        assert broken["coexpression_error"] > 0.2 and broken["coexpression_error_modules"] > 0.2
        assert broken["variance_ratio"] == pytest.approx(1.0, rel=1e-6)
        assert broken["mse_cells"] == pytest.approx(same["mse_cells"], rel=1e-6)

    def test_a_constant_gene_correlates_with_none(self, rng, yardstick):
        y = cells(rng, 60).astype(np.float64)
        x = y.copy()
        x[:, 3] = 0.1  # not a binary fraction: its float64 mean need not be itself
        true = np.corrcoef(y.T)
        noise = (1 - true**2) ** 2  # zero on the diagonal
        others = [i for i in range(30) if i != 3]
        left = 2 * (np.sum(true[3] ** 2) - 1) - (noise[np.ix_(others, others)].sum() + noise.sum()) / 59
        expected = np.sign(left) * np.sqrt(abs(left)) / 30
        assert Reference(y, yardstick).score(x)["coexpression_error"] == pytest.approx(expected, abs=1e-10)

    def test_modules_may_be_absent_or_emptied(self, rng):
        x, y = cells(rng, 30), cells(rng, 30)
        plain = Yardstick.fit(y, GENES)
        assert np.isnan(Reference(y, plain).score(x)["coexpression_error_modules"])
        few = Yardstick.fit(y, GENES, modules=np.where(np.arange(30) < 6, np.arange(30) // 2, -1))
        whole, less = Reference(y, few), Reference(y, few, ["g0", "g1"])
        a, b = (v[:, [2, 4]] + v[:, [3, 5]] for v in (x.astype(np.float64), y.astype(np.float64)))
        expected = self.left(np.corrcoef(a.T), 30, np.corrcoef(b.T), 30)
        assert less.score(x)["coexpression_error_modules"] == pytest.approx(expected, abs=1e-10)
        assert whole.score(x)["coexpression_error_modules"] != less.score(x)["coexpression_error_modules"]
        one_left = ["g0", "g1", "g2", "g3"]
        assert np.isnan(Reference(y, few, one_left).score(x)["coexpression_error_modules"])

    def test_mse_cells_is_the_mean_over_all_pairs(self, rng, yardstick):
        x, y = cells(rng, 12, 0.5).astype(np.float64), cells(rng, 9).astype(np.float64)
        kept = [i for i in range(30) if i != 5]
        expected = np.mean([(p[kept] - q[kept]) ** 2 for p in x for q in y])
        assert Reference(y, yardstick, ["g5"]).score(x)["mse_cells"] == pytest.approx(expected, rel=1e-10)


class TestPopulation:
    def test_shifted_equals_building_anew(self, rng, yardstick):
        controls, y = cells(rng, 40), cells(rng, 35, 0.4)
        effect = rng.normal(size=30)
        reference = Reference(y, yardstick, ["g1", "g8"])
        population = Population(controls, yardstick, ["g1", "g8"])
        reference.score(population)  # what is kept from here must not be stale
        moved = population.shifted(effect)
        anew = reference.score(controls + effect)
        assert reference.score(moved) == pytest.approx(anew, abs=1e-8)
        twice = population.shifted(0.5 * effect).shifted(0.5 * effect)
        assert reference.score(twice) == pytest.approx(anew, abs=1e-8)
        assert reference.score(population) == pytest.approx(reference.score(controls), abs=1e-10)
        np.testing.assert_allclose(moved.mean, controls.mean(axis=0, dtype=np.float64) + effect)
        np.testing.assert_allclose(moved.projection, yardstick.space.project(controls + effect, ["g1", "g8"]))

    def test_a_shift_is_not_computed_twice(self, monkeypatch, rng, yardstick):
        reference, population = Reference(cells(rng, 20), yardstick), Population(cells(rng, 20), yardstick)
        reference.score(population)
        calls = []
        monkeypatch.setattr(populations, "correlations", lambda *a: calls.append("correlations"))
        monkeypatch.setattr(populations, "pair_means", lambda *a: calls.append("pairs"))
        monkeypatch.setattr(populations, "self_transport", lambda *a: calls.append("transport"))
        monkeypatch.setattr(Space, "project", lambda *a: calls.append("projection"))
        reference.score(population.shifted(rng.normal(size=30)))
        assert not calls

    def test_genes_left_out_later_equal_building_anew(self, rng, yardstick):
        x, y, effect = cells(rng, 30, 0.3), cells(rng, 30), rng.normal(size=30)
        reference, population = Reference(y, yardstick), Population(x, yardstick).shifted(effect)
        reference.score(population)
        later = reference.without(["g3", "g4"]).score(population.without(["g3", "g4"]))
        assert later == pytest.approx(Reference(y, yardstick, ["g4", "g3"]).score(x + effect), abs=1e-8)
        back = reference.without(["g3"]).without([]).score(population.without(["g7"]).without([]))
        assert back == pytest.approx(reference.score(population), abs=1e-8)

    @pytest.mark.parametrize("without", [(), ("g1", "g8")])
    def test_a_gene_left_out_does_not_count(self, rng, yardstick, without):
        x, y = cells(rng, 30), cells(rng, 30)
        wild = x.copy()
        wild[:, [1, 8]] = 50 * rng.normal(size=(30, 2))
        reference = Reference(y, yardstick, without)
        same = reference.score(wild) == pytest.approx(reference.score(x), abs=1e-8)
        assert same == bool(without)

    def test_order_of_cells_plays_no_part(self, rng, yardstick):
        x, y = cells(rng, 45, 0.3), cells(rng, 30)
        plain = Reference(y, yardstick).score(x)
        mixed = Reference(y[rng.permutation(30)], yardstick).score(x[rng.permutation(45)])
        assert mixed == pytest.approx(plain, abs=1e-9)

    @pytest.mark.parametrize("form", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, lambda x: x.astype(np.float64)])
    def test_sparse_equals_dense(self, rng, yardstick, form):
        x, y = cells(rng, 20), cells(rng, 25)
        expected = Reference(y, yardstick, ["g2"]).score(x)
        assert Reference(form(y), yardstick, ["g2"]).score(form(x)) == pytest.approx(expected, abs=1e-8)

    @pytest.mark.parametrize("n, m", [(0, 10), (1, 10), (10, 1), (10, 0), (1, 1)])
    def test_too_few_cells_have_no_score(self, rng, yardstick, n, m):
        score = Reference(cells(rng, m), yardstick).score(cells(rng, n))
        assert list(score) == list(POPULATION_METRICS)
        assert np.isnan(list(score.values())).all()

    def test_what_cannot_be_compared_is_refused(self, rng, yardstick):
        x = cells(rng, 10)
        reference = Reference(x, yardstick, ["g1"])
        with pytest.raises(ValueError, match="other genes count"):
            reference.score(Population(x, yardstick))
        with pytest.raises(ValueError, match="another yardstick"):
            reference.score(Population(x, replace(yardstick), ["g1"]))
        with pytest.raises(ValueError, match="not finite"):
            reference.score(np.where(np.arange(30) == 2, np.nan, x))
        with pytest.raises(ValueError, match="not finite"):
            reference.score(Population(x, yardstick, ["g1"]).shifted(np.full(30, np.nan)))

    def test_better_populations_score_better(self, rng, yardstick):
        real = cells(rng, 150, 0.8)
        reference = Reference(real, yardstick)
        half, control = reference.score(cells(rng, 150, 0.8)), reference.score(cells(rng, 150))
        flat = reference.score(np.tile(real.mean(axis=0), (150, 1)))
        for name in ("e_distance", "mmd", "wasserstein", "sinkhorn_divergence"):
            assert half[name] < control[name], name
            assert half[name] < flat[name], name
        # Which is why it is no measure of populations.
        assert flat["mse_cells"] < half["mse_cells"]

    def test_where_flat_cells_come_out_ahead(self):
        """Documented: transport between few cells in many dimensions rewards cells without noise."""
        rng = np.random.default_rng(5)
        draw = lambda: rng.normal(size=(40, 30))  # noqa: E731
        yardstick = Yardstick.fit(np.concatenate([draw() for _ in range(5)]), GENES)
        reference = Reference(draw(), yardstick)
        good, bad = reference.score(draw()), reference.score(np.zeros((40, 30)))
        assert good["e_distance"] < bad["e_distance"] and good["mmd"] < bad["mmd"]
        assert good["wasserstein"] > bad["wasserstein"]
        assert good["sinkhorn_divergence"] > bad["sinkhorn_divergence"]
