"""Optimal transport against ott, scipy and closed forms, and the underflow that it must not have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scbig import ot

# ott imports an unmaintained package, which says so; nothing of ours imports it.
pytestmark = pytest.mark.filterwarnings("ignore:JAXopt is no longer maintained:DeprecationWarning")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def clouds(rng, n=40, m=50, dims=5, shift=0.5):
    x = rng.normal(size=(n, dims)).astype(np.float32)
    return x, (rng.normal(size=(m, dims)) + shift).astype(np.float32)


def weights(rng, n):
    values = rng.uniform(0.2, 1.0, n)
    return (values / values.sum()).astype(np.float32)


class TestSquaredDistances:
    def test_equals_scipy_far_from_the_origin(self, rng):
        x, y = clouds(rng)
        expected = cdist(x, y, "sqeuclidean")
        np.testing.assert_allclose(ot.squared_distances(x + 1000, y + 1000), expected, rtol=1e-2, atol=1e-2)
        np.testing.assert_allclose(ot.squared_distances(x, y), expected, rtol=1e-5, atol=1e-5)

    def test_never_negative(self, rng):
        x = rng.normal(size=(30, 200)).astype(np.float32) * 100
        distances = np.asarray(ot.squared_distances(x, x))
        assert (distances >= 0).all()
        assert np.diag(distances).max() < 1e-6 * distances.max()

    def test_gradient_does_not_depend_on_the_origin(self, rng):
        x, y = clouds(rng)
        weight = rng.normal(size=(40, 50)).astype(np.float32)
        total = lambda points: jnp.sum(weight * ot.squared_distances(y, points).T)  # noqa: E731
        gradient = jax.grad(total)(jnp.asarray(x))
        expected = 2 * (weight.sum(axis=1)[:, None] * x - weight @ y)
        np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


class TestSinkhorn:
    @pytest.mark.parametrize("fraction", [0.02, 0.1, 1.0])
    def test_equals_ott(self, rng, fraction):
        from ott.geometry import geometry
        from ott.problems.linear import linear_problem
        from ott.solvers.linear import sinkhorn

        x, y = clouds(rng)
        cost, a, b = jnp.asarray(cdist(x, y, "sqeuclidean"), jnp.float32), weights(rng, 40), weights(rng, 50)
        epsilon = float(fraction * cost.mean())
        with jax.numpy_rank_promotion("allow"):
            problem = linear_problem.LinearProblem(geometry.Geometry(cost, epsilon=epsilon), a=a, b=b)
            expected = sinkhorn.Sinkhorn(threshold=1e-6, max_iterations=5000)(problem).matrix
        potentials = ot.sinkhorn(cost, epsilon, a, b, iterations=2000)
        plan = ot.plan(cost, potentials, epsilon, a, b)
        np.testing.assert_allclose(plan, expected, atol=2e-5 * float(expected.max()) + 1e-7)

    def test_marginals(self, rng):
        x, y = clouds(rng)
        cost, a, b = ot.squared_distances(x, y), weights(rng, 40), weights(rng, 50)
        plan = ot.plan(cost, ot.sinkhorn(cost, 0.5, a, b, iterations=500), 0.5, a, b)
        np.testing.assert_allclose(plan.sum(axis=1), a, rtol=1e-4)
        np.testing.assert_allclose(plan.sum(axis=0), b, rtol=1e-4)

    def test_weight_zero_takes_no_mass(self, rng):
        x, y = clouds(rng, 6, 7)
        a = np.array([0, 0.2, 0.2, 0.2, 0.2, 0.2], np.float32)
        cost = ot.squared_distances(x, y)
        plan = np.asarray(ot.plan(cost, ot.sinkhorn(cost, 0.5, a=a, iterations=500), 0.5, a=a))
        assert np.isfinite(plan).all()
        assert plan[0].sum() == 0
        np.testing.assert_allclose(plan.sum(axis=1), a, atol=1e-5)

    def test_tolerance_stops_when_rows_are_right_and_not_before(self, rng):
        x, y = clouds(rng)
        cost = ot.squared_distances(x, y)

        def error(potentials):
            return float(jnp.abs(ot.plan(cost, potentials, 0.5).sum(axis=1) - 1 / 40).sum())

        loose, tight = (ot.sinkhorn(cost, 0.5, iterations=5000, tolerance=tolerance) for tolerance in (1e-1, 1e-4))
        assert 1e-4 < error(loose) <= 1e-1
        assert error(tight) <= 1.1e-4

    def test_tolerance_respects_the_limit(self, rng):
        cost = ot.squared_distances(*clouds(rng))
        limited = ot.sinkhorn(cost, 0.1, iterations=3, tolerance=1e-12)
        fixed = ot.sinkhorn(cost, 0.1, iterations=3)
        np.testing.assert_allclose(limited.f, fixed.f, rtol=1e-6)

    def test_tiny_epsilon_stays_finite_and_finds_the_assignment(self, rng):
        x, y = clouds(rng, 12, 12, shift=0)
        cost = cdist(x, y, "sqeuclidean").astype(np.float32)
        epsilon = 1e-3 * float(cost.mean())
        plan = np.asarray(ot.plan(cost, ot.sinkhorn(cost, epsilon, iterations=20000), epsilon))
        assert np.isfinite(plan).all()
        np.testing.assert_array_equal(plan.argmax(axis=1), linear_sum_assignment(cost)[1])

    @pytest.mark.parametrize("fraction", [1.0, 0.05, 0.02, 0.002])
    @pytest.mark.parametrize("iterations", [1, 7, 200])
    def test_a_batch_equals_its_problems(self, rng, fraction, iterations):
        x = rng.normal(size=(3, 20, 10)).astype(np.float32)
        y = (x[:, ::-1, :] + rng.normal(size=x.shape)).astype(np.float32)[:, :15] + 1.0
        cost = jax.vmap(ot.squared_distances)(jnp.asarray(x), jnp.asarray(y))
        epsilon = fraction * jnp.mean(cost, axis=(1, 2)) * jnp.asarray([1.0, 2.0, 0.5])
        found = ot.sinkhorn_batch(cost, epsilon, iterations)
        for k in range(3):
            alone = ot.sinkhorn(cost[k], epsilon[k], iterations=iterations)
            expected = ot.plan(cost[k], alone, epsilon[k])
            plan = ot.plan(cost[k], ot.Potentials(found.f[k], found.g[k]), epsilon[k])
            # Potentials carry some seven digits, of which cost over epsilon takes its share.
            rounding = 1e-6 * float(jnp.max(cost[k]) / epsilon[k])
            np.testing.assert_allclose(plan, expected, atol=(1e-5 + rounding) * float(expected.max()))

    def test_a_batch_uses_the_kernel_where_it_is_safe_and_logs_where_it_is_not(self, rng):
        cost = jnp.asarray(rng.random((2, 8, 8)) * 10, jnp.float32)
        # One iteration from zero: with the kernel's own rounding the two domains differ in the last bits.
        for epsilon, safe in ((1.0, True), (0.01, False)):
            both = jnp.asarray([1.0, epsilon], jnp.float32)
            logs = jax.vmap(lambda c, e: ot.sinkhorn(c, e, iterations=30))(cost, both)
            found = ot.sinkhorn_batch(cost, both, 30)
            assert np.isfinite(np.asarray(found.f)).all()
            assert np.array_equal(found.f, logs.f) != safe
        kernel = jnp.exp(-cost[1] / 0.01)
        assert float(jnp.min(jnp.max(kernel, axis=1))) == 0.0  # a plain kernel would have lost whole rows

    def test_vmap_and_traced_epsilon_compile_once(self, rng):
        cost = jnp.asarray(rng.uniform(size=(3, 8, 9)), jnp.float32)
        traces = []

        @jax.jit
        def solve(cost, epsilon):
            traces.append(1)
            return jax.vmap(lambda c, e: ot.plan(c, ot.sinkhorn(c, e, iterations=50), e))(cost, epsilon)

        first = solve(cost, jnp.array([0.1, 0.2, 0.3]))
        solve(cost, jnp.array([1.0, 2.0, 3.0]))
        assert len(traces) == 1
        alone = ot.plan(cost[1], ot.sinkhorn(cost[1], 0.2, iterations=50), 0.2)
        np.testing.assert_allclose(first[1], alone, rtol=1e-4)


class TestRelativeEpsilon:
    @pytest.mark.parametrize("statistic", ["median", "mean", "std"])
    def test_is_a_share_of_the_statistic_without_gradient(self, rng, statistic):
        cost = jnp.asarray(rng.uniform(size=(6, 7)), jnp.float32)
        epsilon = ot.relative_epsilon(cost, 0.1, statistic)
        np.testing.assert_allclose(epsilon, 0.1 * getattr(np, statistic)(np.asarray(cost)), rtol=1e-5)
        gradient = jax.grad(lambda values: ot.relative_epsilon(values, 0.1, statistic))(cost)
        assert (gradient == 0).all()

    def test_positive_for_a_median_of_zero(self):
        cost = jnp.zeros((4, 4)).at[0, 0].set(2.0)
        assert float(ot.relative_epsilon(cost, 0.1)) == pytest.approx(2e-6)
        assert float(ot.relative_epsilon(jnp.zeros((4, 4)), 0.1)) > 0

    def test_refuses_other_statistics(self):
        with pytest.raises(ValueError, match="'mode'"):
            ot.relative_epsilon(jnp.ones((2, 2)), 0.1, "mode")


class TestDivergence:
    @pytest.mark.parametrize("fraction", [0.05, 0.5])
    def test_equals_ott(self, rng, fraction):
        from ott.geometry import pointcloud
        from ott.tools import sinkhorn_divergence

        x, y = (jnp.asarray(points) for points in clouds(rng))
        epsilon = ot.relative_epsilon(ot.squared_distances(x, y), fraction)
        with jax.numpy_rank_promotion("allow"):
            expected, _ = sinkhorn_divergence.sinkhorn_divergence(
                pointcloud.PointCloud,
                x=x,
                y=y,
                epsilon=epsilon,
                solve_kwargs={"threshold": 1e-5, "max_iterations": 5000},
            )
        assert float(ot.divergence(x, y, fraction, 1000)) == pytest.approx(float(expected), rel=1e-4)

    def test_zero_for_equal_clouds_and_positive_otherwise(self, rng):
        x, y = clouds(rng)
        scale = float(np.median(cdist(x, y, "sqeuclidean")))
        assert abs(float(ot.divergence(x, rng.permutation(x), 0.05, 500))) < 1e-4 * scale
        for shift in (0.05, 0.2, 1.0):
            assert float(ot.divergence(x, x + np.float32(shift), 0.05, 500)) > 0.9 * 5 * shift**2

    def test_a_shift_costs_its_square(self, rng):
        x, _ = clouds(rng)
        assert float(ot.divergence(x, x + np.float32(2.0), 0.2, 500)) == pytest.approx(5 * 4.0, rel=1e-3)

    def test_identical_points(self):
        points = jnp.ones((5, 3))
        value, gradient = jax.value_and_grad(ot.divergence)(points, points)
        assert float(value) == 0
        assert np.isfinite(gradient).all()

    def test_the_three_gradients_agree_at_convergence(self, rng):
        x, y = (jnp.asarray(points) for points in clouds(rng))

        def gradient(kind):
            # ott promotes ranks, in its backward rule too.
            with jax.numpy_rank_promotion("allow" if kind == "implicit" else "raise"):
                return np.asarray(jax.grad(ot.divergence)(x, y, 0.2, 1000, kind))

        envelope, unrolled, implicit = map(gradient, ("envelope", "unrolled", "implicit"))
        scale = np.abs(envelope).max()
        np.testing.assert_allclose(unrolled, envelope, atol=1e-4 * scale)
        np.testing.assert_allclose(implicit, envelope, atol=2e-3 * scale)

    def test_gradient_by_finite_differences(self, rng):
        # ε is a constant of the gradient, so the differences are taken at the ε of the unmoved clouds.
        x, y = clouds(rng, 9, 9, 3)
        epsilon = float(ot.relative_epsilon(ot.squared_distances(x, y), 0.2))
        gradient = np.asarray(jax.grad(ot.divergence)(jnp.asarray(x), y, 0.2, 1000))

        def fraction(points):
            return epsilon / float(np.median(ot.squared_distances(points, y)))

        for i, j in [(0, 0), (3, 1), (8, 2)]:
            step = np.zeros_like(x)
            step[i, j] = 0.05
            up, down = (float(ot.divergence(p, y, fraction(p), 1000)) for p in (x + step, x - step))
            assert (up - down) / 0.1 == pytest.approx(gradient[i, j], rel=2e-2, abs=2e-3)

    def test_envelope_does_not_differentiate_the_iterations(self, rng):
        x, y = (jnp.asarray(points) for points in clouds(rng))

        def n_scans(kind):
            text = str(jax.make_jaxpr(jax.grad(lambda points: ot.divergence(points, y, 0.05, 50, kind)))(x))
            return text.count("scan[")

        assert n_scans("envelope") == 3
        assert n_scans("unrolled") > 3

    def test_refuses_other_gradients(self, rng):
        x, y = clouds(rng, 3, 3)
        with pytest.raises(ValueError, match="'exact'"):
            ot.divergence(x, y, gradient="exact")


def plain_plan(cost):
    """Sinkhorn in the plain domain as found in the wild: kernel exp(−C/0.1), guards of 1e-10."""
    kernel = jnp.exp(-cost / 0.1)
    n, m = cost.shape

    def update(_, scalings):
        u = 1 / n / (kernel @ scalings[1] + 1e-10)
        return u, 1 / m / (kernel.T @ u + 1e-10)

    u, v = jax.lax.fori_loop(0, 50, update, (jnp.ones(n), jnp.ones(m)))
    return u[:, None] * kernel * v[None, :]


def plain_loss(x, y):
    cost = ot.squared_distances(x, y)
    return jnp.sum(plain_plan(cost) * cost)


def check_ours(x, y):
    for fraction in (0.01, 0.05, 0.5):
        value, gradient = jax.value_and_grad(ot.divergence)(x, y, fraction)
        assert np.isfinite(value)
        assert float(value) > 0
        assert np.isfinite(gradient).all()
        assert float(jnp.linalg.norm(gradient, axis=1).min()) > 0


def check_underflow(x, y):
    value, gradient = jax.jit(jax.value_and_grad(plain_loss))(x, y)
    assert float(value) == 0
    assert float(jnp.abs(gradient).max()) == 0
    check_ours(x, y)


def reactome_activity(shared, min_genes):
    """64 control and 64 stimulated cells of Kang 2018: mean log-expression of Reactome pathways."""
    import anndata

    cells = anndata.read_h5ad(shared / "data" / "kang2018_pbmc.h5ad")
    place = {gene: i for i, gene in enumerate(cells.var_names)}
    rows = []
    for line in (shared / "priors" / "ReactomePathways_2024-09-18.gmt").read_text().splitlines():
        inside = sorted({place[gene] for gene in line.split("\t")[2:] if gene in place})
        if min_genes <= len(inside) <= 500:
            rows.append(np.isin(np.arange(len(place)), inside).astype(np.float32) / len(inside))
    stimulated = np.asarray(cells.obs["condition"] == "stimulated")
    keep = np.concatenate([np.flatnonzero(~stimulated)[:64], np.flatnonzero(stimulated)[:64]])
    part = cells.X[keep]
    activity = jnp.asarray((part.toarray() if hasattr(part, "toarray") else part) @ np.stack(rows).T)
    return activity[:64], activity[64:], len(rows)


class TestUnderflow:
    def test_log_expression_of_many_pathways(self, rng):
        # 64 against 64 cells, gene variance 0.16 around a common mean, 950 pathways of 10 to 25 genes.
        cells = np.maximum(rng.gamma(1, 0.7, size=2000) + 0.4 * rng.normal(size=(128, 2000)), 0)
        member = np.stack([rng.permutation(2000) < rng.integers(10, 26) for _ in range(950)])
        activity = jnp.asarray(cells @ (member / member.sum(axis=1, keepdims=True)).T, jnp.float32)
        assert float(ot.squared_distances(activity[:64], activity[64:]).min()) > 8.7
        check_underflow(activity[:64], activity[64:])

    @pytest.mark.realdata
    def test_real_cells_over_all_pathways(self, shared):
        # Every pathway with three genes or more in the panel; the published code takes those with one.
        x, y, n_pathways = reactome_activity(shared, min_genes=3)
        assert n_pathways > 1600
        check_underflow(x, y)

    @pytest.mark.realdata
    def test_real_cells_over_the_default_pathways(self, shared):
        # With 10 to 500 genes per pathway the plain form survives here, but loses most of its mass.
        x, y, n_pathways = reactome_activity(shared, min_genes=10)
        assert n_pathways >= 900
        assert 0.2 < float(plain_plan(ot.squared_distances(x, y)).sum()) < 0.5
        check_ours(x, y)
        # The default number of iterations is enough for the default ε on real cells.
        short, long = (float(ot.divergence(x, y, 0.05, n)) for n in (100, 3000))
        assert short == pytest.approx(long, rel=1e-3)


class TestPerplexity:
    def test_permutation_and_independent(self):
        assert float(ot.perplexity(jnp.eye(7) / 7)) == pytest.approx(1)
        assert float(ot.perplexity(jnp.full((3, 7), 1 / 21))) == pytest.approx(7)

    def test_rows_without_mass_are_left_out(self):
        plan = jnp.array([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
        assert float(ot.perplexity(plan)) == pytest.approx(2)

    def test_falls_with_epsilon(self, rng):
        cost = ot.squared_distances(*clouds(rng))
        values = [float(ot.perplexity(ot.plan(cost, ot.sinkhorn(cost, e), e))) for e in (0.1, 1.0, 100.0)]
        assert values[0] < values[1] < values[2] <= 50.001


class TestDraws:
    def test_match_follows_the_rows(self, rng):
        plan = jnp.asarray(np.array([[0.1, 0.3, 0.0], [0.5, 0.0, 0.1]]), jnp.float32)
        draws = np.stack([ot.match(key, plan) for key in jax.random.split(jax.random.key(0), 400)])
        share = np.stack([(draws == k).mean(axis=0) for k in range(3)], axis=1)
        np.testing.assert_allclose(share, plan / plan.sum(axis=1, keepdims=True), atol=0.08)
        assert share[0, 2] == share[1, 1] == 0

    def test_match_of_a_permutation_is_the_permutation(self, rng):
        order = rng.permutation(9)
        np.testing.assert_array_equal(ot.match(jax.random.key(1), jnp.eye(9)[order] / 9), order)

    def test_a_row_without_mass_takes_the_first_column(self):
        assert ot.match(jax.random.key(0), jnp.asarray([[0.0, 0.0], [0.0, 1.0]])).tolist() == [0, 1]
