import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scbig.nn.condition import ConditionEncoder, ConditionEncoderConfig, Conditions

DIMS = {"text": 5, "network": 3}


def make(**changes):
    config = ConditionEncoderConfig(**{"width": 12, "n_contexts": 2} | changes)
    return ConditionEncoder(config, DIMS, rngs=nnx.Rngs(params=0))


def conditions(seed=0, n=6, tokens=2):
    rng = np.random.default_rng(seed)
    present = np.arange(tokens)[None] < rng.integers(1, tokens + 1, n)[:, None]
    known = {name: rng.random((n, tokens)) < 0.6 for name in DIMS}
    known["text"] |= ~known["network"]
    known = {name: value & present for name, value in known.items()}
    vectors = {name: rng.normal(size=(n, tokens, d)) for name, d in DIMS.items()}
    return Conditions(
        sources={name: jnp.asarray(v * known[name][..., None], jnp.float32) for name, v in vectors.items()},
        known={name: jnp.asarray(value) for name, value in known.items()},
        present=jnp.asarray(present),
        dose=jnp.zeros((n, tokens)),
        context=jnp.asarray(rng.integers(0, 2, n), jnp.int32),
    )


def tokenwise(given, change):
    """Applies a change to every array with a token axis."""
    return Conditions(
        {k: change(v) for k, v in given.sources.items()},
        {k: change(v) for k, v in given.known.items()},
        change(given.present),
        change(given.dose),
        given.context,
    )


def close(one, other, atol=1e-5):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


def test_order_of_the_set_does_not_matter():
    encoder, given = make(), conditions(tokens=3)
    order = np.array([2, 0, 1])
    turned, straight = encoder(tokenwise(given, lambda v: v[:, order])), encoder(given)
    np.testing.assert_allclose(turned.pooled, straight.pooled, atol=1e-5)
    np.testing.assert_allclose(turned.tokens, straight.tokens[:, order], atol=1e-5)


def test_padding_does_not_matter():
    encoder, given = make(), conditions()
    padded = encoder(tokenwise(given, lambda v: jnp.pad(v, [(0, 0), (0, 2)] + [(0, 0)] * (v.ndim - 2))))
    np.testing.assert_allclose(padded.pooled, encoder(given).pooled, atol=1e-5)
    np.testing.assert_allclose(padded.tokens[:, :2], encoder(given).tokens, atol=1e-5)
    assert np.all(np.asarray(padded.tokens[:, 2:]) == 0) and not np.asarray(padded.present[:, 2:]).any()


def test_a_masked_source_is_not_read():
    encoder, given = make(), conditions()
    noise = {k: jnp.where(given.known[k][..., None], v, 99.0) for k, v in given.sources.items()}
    close(encoder(given._replace(sources=noise)), encoder(given))


def test_control_dose_and_context_are_told_apart():
    encoder, given = make(), conditions()
    control = encoder(given._replace(present=jnp.zeros_like(given.present)))
    assert np.isfinite(control.pooled).all() and np.all(np.asarray(control.tokens) == 0)
    plain = encoder(given).tokens
    assert not np.allclose(encoder(given._replace(dose=given.present * 1.0)).tokens, plain)
    np.testing.assert_array_equal(encoder(given._replace(context=1 - given.context)).tokens, plain)
    encoder.context.embedding[...] = jnp.asarray([[1.0] * 12, [-1.0] * 12])
    turned = encoder(given._replace(context=1 - given.context)).tokens
    assert not np.allclose(turned, encoder(given).tokens)


def test_source_dropout_never_hides_every_source():
    given = conditions()
    hidden = make(source_dropout=1.0)
    close(hidden(given, jax.random.key(0)), hidden(given), 1e-6)
    half = make(source_dropout=0.5)
    assert not np.allclose(half(given, jax.random.key(0)).tokens, half(given).tokens)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_null_dropout_gives_the_learned_null(rate):
    encoder, given = make(null_dropout=rate, source_dropout=0.0), conditions()
    encoder.null[...] = jnp.arange(12.0)
    expected = encoder.nothing(6, 2) if rate else encoder(given)
    close(encoder(given, jax.random.key(0)), expected, 1e-6)
    assert encoder.nothing(6, 2).present.sum(1).tolist() == [1] * 6
