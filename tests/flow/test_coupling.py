import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from scbig import flow


@pytest.fixture
def populations():
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(3, 12, 4)), jnp.float32) for _ in range(2)]


def test_exact_is_the_assignment_of_least_cost(populations):
    z0, z1 = populations
    partners, perplexity = jax.jit(lambda k, a, b: flow.couple(k, a, b, "exact"))(jax.random.key(0), z0, z1)
    for c in range(3):
        expected = linear_sum_assignment(cdist(z0[c], z1[c], "sqeuclidean"))[1]
        np.testing.assert_array_equal(partners[c], expected)
    assert perplexity == 1.0


def test_sinkhorn_runs_from_the_assignment_to_independence(populations):
    z0, z1 = populations
    exact, _ = flow.couple(jax.random.key(0), z0, z1, "exact")
    sharp, narrow = flow.couple(jax.random.key(1), z0, z1, "sinkhorn", 0.005)
    _, wide = flow.couple(jax.random.key(1), z0, z1, "sinkhorn", 100.0)
    assert np.mean(np.asarray(sharp) == np.asarray(exact)) > 0.8
    assert float(narrow) < 2.0 and float(wide) > 11.5


def test_independent_keeps_the_order(populations):
    partners, perplexity = flow.couple(jax.random.key(0), *populations, "independent")
    np.testing.assert_array_equal(partners, np.tile(np.arange(12), (3, 1)))
    assert perplexity == 12


def test_an_unknown_coupling_is_refused(populations):
    with pytest.raises(ValueError, match="greedy"):
        flow.couple(jax.random.key(0), *populations, "greedy")


def test_precomputed_partners_are_near_and_use_every_control():
    rng = np.random.default_rng(1)
    z0 = rng.normal(size=(40, 3)).astype(np.float32)
    z1 = (z0 + 5.0)[rng.permutation(40)]
    partners, perplexity = flow.precompute(z0, z1, seed=0, epsilon=0.002, draws=8)
    assert partners.shape == (40, 8) and perplexity < 3
    near = np.linalg.norm(z0[partners] + 5.0 - z1[:, None], axis=-1).mean()
    far = np.linalg.norm(z0[rng.integers(0, 40, (40, 8))] + 5.0 - z1[:, None], axis=-1).mean()
    assert near < 0.5 * far
    # Balanced: each control is drawn about as often as any other.
    counts = np.bincount(partners.ravel(), minlength=40)
    assert counts.min() >= 1 and counts.max() <= 24
    capped, _ = flow.precompute(z0, z1, seed=0, draws=4, most=10)
    assert len(np.unique(capped)) <= 10
