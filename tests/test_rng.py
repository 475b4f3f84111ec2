import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scbig import rng


def bits(key):
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_a_key_is_a_function_of_seed_purpose_and_step():
    assert bits(rng.key(3, "batch", 7)) == bits(rng.key(3, "batch", 7))
    assert bits(rng.key(3, "batch")) == bits(rng.key(3, "batch", 0))


def test_keys_of_other_seeds_purposes_and_steps_all_differ():
    seen = [
        bits(rng.key(seed, purpose, step))
        for seed in range(6)
        for purpose in ("batch", "batch ", "time", "noise", "")
        for step in (0, 1, 2, 1000)
    ]
    assert len(set(seen)) == len(seen)


def test_purposes_give_streams_that_are_not_correlated():
    a = jax.random.normal(rng.key(0, "flow time", 5), (20_000,))
    for other in (rng.key(0, "flow noise", 5), rng.key(0, "flow time", 6), rng.key(1, "flow time", 5)):
        b = jax.random.normal(other, (20_000,))
        assert abs(float(jnp.corrcoef(a, b)[0, 1])) < 0.035  # five standard errors


def test_a_traced_step_gives_the_key_of_the_number():
    traced = jax.jit(lambda step: jax.random.key_data(rng.key(4, "x", step)))
    for step in (0, 9, 123_456):
        assert tuple(np.asarray(traced(step)).tolist()) == bits(rng.key(4, "x", step))
    assert traced._cache_size() == 1


def test_a_key_is_typed():
    assert jnp.issubdtype(rng.key(0, "x").dtype, jax.dtypes.prng_key)


def test_generators_repeat_and_differ_by_seed_and_purpose():
    draw = lambda *about: tuple(rng.generator(*about).integers(0, 1 << 62, 4))  # noqa: E731
    assert draw(0, "split") == draw(0, "split")
    assert len({draw(seed, purpose) for seed in range(5) for purpose in ("split", "hold out", "")}) == 15


@pytest.mark.parametrize("call", [lambda: rng.generator(0, "x"), lambda: rng.key(0, "x")])
def test_drawing_leaves_numpys_global_state_alone(call):
    before = np.random.get_state()[1].copy()
    call()
    np.testing.assert_array_equal(before, np.random.get_state()[1])
