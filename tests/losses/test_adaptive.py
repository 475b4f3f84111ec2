import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbig import losses


def test_weights_are_of_mean_one_and_favour_what_stands_out():
    rng = np.random.default_rng(0)
    error = 0.5
    effects = error * rng.normal(size=(6, 400))
    effects[:5, :8] += 10 * error
    weights = losses.differential_weights(effects, np.full((6, 1), error), floor=4.0)
    np.testing.assert_allclose(weights.mean(axis=1), 1.0, rtol=1e-5)
    assert (weights >= 0).all() and (weights[:5, :8].sum(axis=1) > 0.99 * 400).all()
    order = np.argsort(np.abs(effects[0, :8]))
    assert (np.diff(weights[0, :8][order]) > 0).all()
    # Nothing stands out in the last condition: its genes weigh alike.
    np.testing.assert_array_equal(weights[5], np.ones(400, np.float32))
    turned = rng.permutation(400)
    again = losses.differential_weights(effects[:, turned], np.full((6, 1), error), floor=4.0)
    np.testing.assert_array_equal(again, weights[:, turned])
    alike = losses.differential_weights(effects, np.full((6, 1), error), floor=4.0, power=0)
    np.testing.assert_allclose(alike[0, :8], 50.0, rtol=1e-5)


def test_the_noise_floor_is_the_noise_where_most_genes_are_silent():
    rng = np.random.default_rng(1)
    effects = 0.3 * rng.normal(size=(3, 5000))
    effects[:, :200] += 20.0
    np.testing.assert_allclose(losses.noise_floor(effects), 0.3, rtol=0.1)


def test_the_schedule_goes_from_uniform_to_differential():
    share = [float(losses.scheduled_share(p)) for p in (0.0, 0.1, 0.35, 0.6, 1.0)]
    np.testing.assert_allclose(share, [0.0, 0.0, 0.5, 1.0, 1.0], atol=1e-6)
    weights = jnp.asarray([[4.0, 0, 0, 0], [1, 1, 2, 0]])
    np.testing.assert_array_equal(losses.mixed_weights(weights, share[0]), np.ones((2, 4)))
    np.testing.assert_allclose(losses.mixed_weights(weights, share[-1]), weights, atol=1e-6)
    np.testing.assert_allclose(losses.mixed_weights(weights, 0.3).mean(axis=1), 1.0, rtol=1e-6)


def test_weighted_losses_against_their_definitions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 5, 7))
    weights = np.abs(rng.normal(size=(5, 7)))
    found = losses.weighted_effect_loss(*(jnp.asarray(each, jnp.float32) for each in (x, y, weights)))
    np.testing.assert_allclose(found, (weights * (x - y) ** 2).mean(axis=1), rtol=1e-5)


def test_the_loss_of_a_mean_does_not_ask_for_a_narrow_population():
    """Cells drawn around the right mean cost nothing on average, whatever their spread, and a shift its square."""
    mean, weights = jnp.zeros(3), jnp.asarray([3.0, 0.0, 0.0])
    cells = 2.0 * jax.random.normal(jax.random.key(0), (4000, 4, 3))
    value = jax.vmap(losses.mean_effect_loss, (0, None, None))
    assert float(jnp.mean(value(cells, mean, weights))) == pytest.approx(0.0, abs=0.1)
    moved = jnp.mean(value(cells + jnp.asarray([0.5, 9.0, 9.0])[None, None], mean, weights))
    assert float(moved) == pytest.approx(0.25, abs=0.1)
