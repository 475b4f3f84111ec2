import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbig import flow


def test_path_runs_from_control_to_perturbed_and_its_end_is_found_from_anywhere():
    rng = np.random.default_rng(0)
    z0, z1, noise = (jnp.asarray(rng.normal(size=(2, 6, 3)), jnp.float32) for _ in range(3))
    for when, expected in ((0.0, z0), (1.0, z1)):
        at, u = flow.interpolate(z0, z1, jnp.full((2, 6, 1), when), noise, 0.0)
        np.testing.assert_allclose(at, expected, atol=1e-6)
    t = jnp.asarray(rng.random((2, 6, 1)), jnp.float32)
    at, u = flow.interpolate(z0, z1, t, noise, 0.0)
    np.testing.assert_allclose(flow.endpoint(at, t, u), z1, atol=1e-5)
    noisy, same = flow.interpolate(z0, z1, t, noise, 0.5)
    np.testing.assert_allclose(noisy - at, 0.5 * noise, atol=1e-6)
    np.testing.assert_array_equal(same, u)


@pytest.mark.parametrize(("kind", "spread"), [("uniform", 1 / np.sqrt(12)), ("logit_normal", 0.208)])
def test_times_lie_inside_with_the_known_spread(kind, spread):
    t = np.asarray(flow.sample_time(jax.random.key(0), 5000, 4, kind))
    assert t.shape == (5000, 4) and t.min() >= 0 and t.max() <= 1
    assert abs(t.mean() - 0.5) < 0.01 and abs(t.std() - spread) < 0.01


def test_few_times_cover_the_path_evenly():
    t = np.asarray(flow.sample_time(jax.random.key(1), 8, 4))
    # Each condition has a time in every quarter, and all together one in every thirty-second part.
    np.testing.assert_array_equal(np.floor(t * 4), np.tile(np.arange(4), (8, 1)))
    np.testing.assert_array_equal(np.sort(np.floor(t * 32).ravel()), np.arange(32))
    other = np.asarray(flow.sample_time(jax.random.key(2), 8, 4))
    assert not np.array_equal(np.floor(t * 32), np.floor(other * 32))


def test_an_unknown_time_is_refused():
    with pytest.raises(ValueError, match="beta"):
        flow.sample_time(jax.random.key(0), 3, 1, "beta")
