import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from scbig import losses


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_reconstruction_weights_have_mean_one(rng):
    x, y = (jnp.asarray(rng.normal(size=(5, 4)), jnp.float32) for _ in range(2))
    plain = losses.reconstruction(x, y)
    assert plain == pytest.approx(float(np.mean((np.asarray(x) - np.asarray(y)) ** 2)), rel=1e-5)
    assert losses.reconstruction(x, y, jnp.full(4, 7.0)) == pytest.approx(float(plain), rel=1e-5)
    first = losses.reconstruction(x, y, jnp.asarray([1.0, 0, 0, 0]))
    assert first == pytest.approx(float(np.mean((np.asarray(x) - np.asarray(y))[:, 0] ** 2) * 1.0), rel=1e-5)


def test_correlation_is_pearsons(rng):
    x = (rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))).astype(np.float32)
    np.testing.assert_allclose(losses.correlation(jnp.asarray(x)), np.corrcoef(x.T), atol=1e-4)


def test_flat_modules_give_finite_gradients(rng):
    x = jnp.asarray(np.repeat(rng.normal(size=(1, 6)), 8, 0), jnp.float32)
    gradient = jax.grad(
        lambda v: losses.cluster_correlation(v, jnp.eye(3), jnp.kron(jnp.eye(3), jnp.full((1, 2), 0.5)))
    )(x)
    assert np.isfinite(gradient).all()


def test_cluster_correlation_is_zero_at_its_target_and_counts_pairs(rng):
    averaging = np.zeros((3, 9), np.float32)
    averaging[np.arange(9) // 3, np.arange(9)] = 1 / 3
    x = jnp.asarray(rng.normal(size=(50, 9)), jnp.float32)
    target = losses.correlation(losses.module_means(x, jnp.asarray(averaging)))
    assert float(losses.cluster_correlation(x, target, jnp.asarray(averaging))) < 1e-12
    shifted = losses.cluster_correlation(x, target + 0.1, jnp.asarray(averaging))
    assert shifted == pytest.approx(0.01, rel=1e-4)


def test_target_is_shrunk_as_ledoit_and_wolf_do(rng):
    x = (rng.normal(size=(30, 5)) @ rng.normal(size=(5, 5))).astype(np.float32)
    ours = losses.shrunk_correlation(x)
    covariance = LedoitWolf().fit(((x - x.mean(0)) / x.std(0)).astype(np.float64)).covariance_
    scale = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(ours, covariance / np.outer(scale, scale), atol=1e-4)
    off = ~np.eye(5, dtype=bool)
    assert np.abs(ours[off]).sum() < np.abs(np.corrcoef(x.T)[off]).sum()


def naive_energy(x, y):
    n, m = len(x), len(y)
    return 2 * cdist(x, y).mean() - cdist(x, x).sum() / (n * (n - 1)) - cdist(y, y).sum() / (m * (m - 1))


def test_energy_distance_is_the_unbiased_formula(rng):
    x, y = rng.normal(size=(20, 5)).astype(np.float32), rng.normal(1, 2, size=(30, 5)).astype(np.float32)
    assert losses.energy_distance(jnp.asarray(x), jnp.asarray(y)) == pytest.approx(naive_energy(x, y), rel=1e-4)
    padded = jnp.concatenate([jnp.asarray(y), jnp.full((7, 5), 1e3)])
    weights = jnp.asarray([1.0] * 30 + [0.0] * 7)
    assert losses.energy_distance(jnp.asarray(x), padded, None, weights) == pytest.approx(naive_energy(x, y), rel=1e-3)


def test_energy_distance_is_unbiased_and_differentiable_where_points_meet(rng):
    values = [float(losses.energy_distance(*jnp.asarray(rng.normal(size=(2, 15, 3)), jnp.float32))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(200)
    x = jnp.zeros((4, 3))
    assert np.isfinite(jax.grad(lambda v: losses.energy_distance(v, x))(x)).all()


def test_pathway_loss_grows_with_a_shift_along_a_pathway_only(rng):
    pathways = np.zeros((2, 12), np.float32)
    pathways[0, :4] = pathways[1, 4:8] = 0.25
    x = jnp.asarray(rng.normal(size=(24, 12)), jnp.float32)
    shift = lambda first, last: x + jnp.zeros(12).at[first:last].set(2.0)[None]  # noqa: E731
    inside = losses.pathway_transport(shift(0, 4), x @ pathways.T, jnp.asarray(pathways))
    outside = losses.pathway_transport(shift(8, 12), x @ pathways.T, jnp.asarray(pathways))
    assert abs(float(outside)) < 1e-5
    assert float(inside) == pytest.approx(4.0 / 2, rel=0.05)
