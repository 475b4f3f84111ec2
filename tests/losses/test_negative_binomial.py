"""Counts against SciPy's negative binomial, and what is built on them against sums over all counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from scbig import losses
from scbig.losses.negative_binomial import _LIMIT

expected_log = jax.jit(losses.expected_log)
log_likelihood = jax.jit(losses.log_likelihood)


def law(mean, theta):
    return st.nbinom(theta, theta / (theta + mean))


def generators(n, seed=0):
    return [np.random.default_rng([seed, number]) for number in range(n)]


def test_likelihood_is_scipys():
    random = np.random.default_rng(0)
    mean = np.exp(random.normal(0.0, 2.5, (40, 30)))
    theta = np.exp(np.linspace(-3.0, 6.0, 30))
    counts = law(mean, theta).rvs(random_state=random)
    counts[0] = 1000  # far out
    found = log_likelihood(*(jnp.asarray(a, jnp.float32) for a in (counts, np.log(mean), theta)))
    np.testing.assert_allclose(found, law(mean, theta).logpmf(counts), rtol=2e-4, atol=3e-3)


@pytest.mark.parametrize("log_mean", [-80.0, 60.0])
def test_a_rate_that_went_astray_has_finite_gradients(log_mean):
    def loss(at, theta):
        return -log_likelihood(jnp.asarray([[0.0, 7.0]]), at, theta).sum()

    slopes = jax.grad(loss, (0, 1))(jnp.full((1, 2), log_mean), jnp.asarray([0.1, 100.0]))
    assert all(np.isfinite(slope).all() for slope in slopes)
    # Towards what was seen.
    assert np.sign(slopes[0][0, 1]) == np.sign(log_mean)


@pytest.mark.parametrize("depth", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("theta", [0.1, 1.0, 20.0, 300.0])
def test_expected_log_expression_is_the_sum_over_all_counts(depth, theta):
    rate = np.array([1e-3, 0.05, 0.5, 3.0, 40.0, 1500.0])
    wanted = []
    for each in rate * depth:
        k = np.arange(int(law(each, theta).isf(1e-11)) + 2)
        wanted.append(float(law(each, theta).pmf(k) @ np.log1p(k / depth)))
    found = expected_log(
        jnp.asarray(np.log(rate)[None], jnp.float32), jnp.full(6, theta), jnp.asarray([depth], jnp.float32)
    )
    np.testing.assert_allclose(found[0], wanted, atol=6e-4, rtol=1e-3)


def test_expected_log_expression_is_what_drawn_cells_have():
    rates = np.exp(np.random.default_rng(0).normal(0.0, 1.5, (1, 12))).repeat(4000, 0).astype(np.float32)
    theta, depth = np.linspace(0.3, 8.0, 12).astype(np.float32), np.full(4000, 0.7, np.float32)
    cells = losses.drawn(rates, theta, depth, generators(4000))
    told = expected_log(jnp.log(rates[:1]), jnp.asarray(theta), jnp.asarray(depth[:1]))[0]
    error = cells.std(axis=0) / np.sqrt(4000)
    assert (np.abs(cells.mean(axis=0) - told) < 4 * error + 6e-4).all()


def test_expected_log_expression_has_a_smooth_gradient():
    def f(at):
        return expected_log(at, jnp.asarray([2.0, 0.5]), jnp.asarray([1.3])).sum()

    at, step = jnp.asarray([[0.4, -2.0]]), 0.02
    for gene in range(2):
        e = jnp.zeros((1, 2)).at[0, gene].set(step)
        assert float(jax.grad(f)(at)[0, gene]) == pytest.approx(float((f(at + e) - f(at - e)) / (2 * step)), rel=5e-3)


def test_drawn_cells_have_the_moments_and_zeros_of_their_law():
    n, theta = 6000, np.array([0.3, 1.0, 5.0, 100.0], np.float32)
    rate, depth = np.array([2.0, 0.2, 8.0, 30.0], np.float32), 1.7
    cells = losses.drawn(np.tile(rate, (n, 1)), theta, np.full(n, depth, np.float32), generators(n))
    counts = np.expm1(cells.astype(float)) * depth
    np.testing.assert_allclose(counts, np.round(counts), atol=1e-3)
    told = law(rate.astype(float) * depth, theta.astype(float))
    np.testing.assert_allclose(
        counts.mean(axis=0), told.mean(), atol=4 * float((told.std() / np.sqrt(n)).max()), rtol=0.08
    )
    np.testing.assert_allclose(counts.var(axis=0), told.var(), rtol=0.2)
    np.testing.assert_allclose((cells == 0).mean(axis=0), told.pmf(0), atol=0.03)
    # Genes are drawn apart from one another, and so are cells.
    assert np.abs(np.corrcoef(cells.T) - np.eye(4)).max() < 0.06
    assert len(np.unique(cells[:, 3])) > 20


def test_a_drawn_cell_does_not_depend_on_its_company():
    rates, theta = np.full((5, 9), 3.0, np.float32), np.full(9, 2.0, np.float32)
    depth = np.array([0.5, 1.0, 1.0, 2.0, 1.0], np.float32)
    whole = losses.drawn(rates, theta, depth, generators(5))
    np.testing.assert_array_equal(whole[3:], losses.drawn(rates[3:], theta, depth[3:], generators(5)[3:]))
    assert not np.array_equal(whole[1], whole[2])
    assert not np.array_equal(whole, losses.drawn(rates, theta, depth, generators(5, 1)))


def test_halves_of_counts_are_binomial_and_independent_for_poisson_counts():
    for n in (0, 1, 2, 3, 7, 40):
        half = np.asarray(losses.thinned(jnp.full((1, 60_000), float(n)), jax.random.key(n)))[0].astype(int)
        shares = np.bincount(half, minlength=n + 1) / len(half)
        np.testing.assert_allclose(shares, st.binom(n, 0.5).pmf(np.arange(n + 1)), atol=0.03)
        assert abs(half.mean() - n / 2) < 4 * np.sqrt(n / 4 / len(half)) + 1e-9
    counts = np.random.default_rng(0).poisson(3.0, (1, 60_000)).astype(np.float32)
    half = np.asarray(losses.thinned(jnp.asarray(counts), jax.random.key(0)))
    assert abs(np.corrcoef(half[0], (counts - half)[0])[0, 1]) < 0.02


def test_a_tilt_meets_its_target_exactly_and_nothing_else_moves_the_mean():
    random = np.random.default_rng(0)
    rates = np.exp(random.normal(-0.5, 1.5, (200, 40))).astype(np.float32)
    theta = np.exp(random.normal(0.5, 1.0, 40)).astype(np.float32)
    depth = np.exp(random.normal(0.0, 0.4, 200)).astype(np.float32)
    rates, theta, depth = map(jnp.asarray, (rates, theta, depth))
    before = expected_log(jnp.log(rates), theta, depth).mean(axis=0)
    assert np.abs(losses.tilt(rates, theta, depth, before)).max() < 1e-3
    # From a hundredth of the mean to four more units of log-expression.
    for target in (before / 100, before * 0.5, before + 0.7, before + 4.0):
        found = losses.tilt(rates, theta, depth, target)
        after = expected_log(jnp.log(rates) + found[None], theta, depth).mean(axis=0)
        np.testing.assert_allclose(after, target, rtol=1e-3, atol=1e-4)
        assert (np.sign(np.asarray(found)) == np.sign(np.asarray(target - before))).all()
    higher = losses.tilt(rates, theta, depth, before + 0.8)
    assert (higher > losses.tilt(rates, theta, depth, before + 0.7)).all()
    assert (losses.tilt(rates, theta, depth, jnp.zeros(40)) < -0.9 * _LIMIT).all()


def test_drawn_cells_of_tilted_rates_have_the_wanted_mean():
    random = np.random.default_rng(1)
    rates = np.exp(random.normal(0.0, 1.0, (3000, 6))).astype(np.float32)
    theta, depth = np.full(6, 1.5, np.float32), np.exp(random.normal(0.0, 0.3, 3000)).astype(np.float32)
    target = jnp.asarray([0.05, 0.3, 0.6, 1.0, 1.5, 2.5])
    found = losses.tilt(*map(jnp.asarray, (rates, theta, depth)), target)
    cells = losses.drawn(rates * np.exp(np.asarray(found))[None], theta, depth, generators(3000))
    assert (np.abs(cells.mean(axis=0) - target) < 4 * cells.std(axis=0) / np.sqrt(3000) + 1e-3).all()
