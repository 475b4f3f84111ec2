import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scbig.errors import InputError
from scbig.nn.condition import Bank, ConditionEncoder, ConditionEncoderConfig, Conditions

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
        None if given.own is None else change(given.own),
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


def banked(seed=0, trained=8, **changes):
    """A kernel encoder with values that differ, its bank, and conditions of which some are in the bank themselves."""
    rng = np.random.default_rng(seed)
    known = {name: rng.random(trained) < 0.7 for name in DIMS}
    known["network"] |= ~known["text"]
    rows = {name: rng.normal(size=(trained, d)) for name, d in DIMS.items()}
    rows = {name: jnp.asarray(v * known[name][:, None], jnp.float32) for name, v in rows.items()}
    bank = Bank(rows, {name: jnp.asarray(v) for name, v in known.items()})
    encoder = attached(bank, **changes)
    given = conditions(seed)
    own = np.where(rng.random(given.present.shape) < 0.5, rng.integers(0, trained, given.present.shape), -1)
    return encoder, bank, given._replace(own=jnp.asarray(own, jnp.int32))


def attached(bank, **changes):
    encoder = make(kernel=True, **changes)
    encoder.attach(bank)
    values = encoder.neighbours.values
    values[...] = jnp.asarray(np.random.default_rng(9).normal(size=values[...].shape), jnp.float32)
    return encoder


def test_attention_and_kernel_start_as_the_mean():
    encoder, _, given = banked()
    encoder.neighbours.values[...] = jnp.zeros_like(encoder.neighbours.values[...])
    close(encoder(given), make()(given))
    close(make(fusion="attention")(given), make()(given))


def asking():
    """An attention encoder whose query and context are not at their start."""
    encoder = make(fusion="attention")
    encoder.query[...] = 3 * jnp.asarray(np.random.default_rng(3).normal(size=12), jnp.float32)
    encoder.context.embedding[...] = jnp.asarray(np.random.default_rng(4).normal(size=(2, 12)), jnp.float32)
    return encoder


def test_attention_weighs_known_sources_by_token_and_context():
    encoder, given = asking(), conditions(n=40, tokens=3)
    order = np.array([2, 0, 1])
    turned, straight = encoder(tokenwise(given, lambda v: v[:, order])), encoder(given)
    np.testing.assert_allclose(turned.tokens, straight.tokens[:, order], atol=1e-5)
    noise = {k: jnp.where(given.known[k][..., None], v, 99.0) for k, v in given.sources.items()}
    close(encoder(given._replace(sources=noise)), encoder(given))

    known = jnp.stack([given.known[name] for name in encoder.names], axis=-1)
    layers = zip(encoder.project, encoder.names, strict=True)
    projected = jnp.stack([layer(given.sources[name]) for layer, name in layers], axis=2)
    weight, other = (np.asarray(encoder._weights(projected, known, k)) for k in (given.context, 1 - given.context))
    np.testing.assert_allclose(weight.sum(-1), np.asarray(known.any(-1), np.float32), atol=1e-5)
    assert (weight[~np.asarray(known)] == 0).all()
    both = np.asarray(known.all(-1))
    assert weight[both].std(axis=0).min() > 0.01 and np.abs(weight - other)[both].max() > 0.01


def test_an_unknown_fusion_is_refused():
    with pytest.raises(InputError, match="not 'sum'"):
        make(fusion="sum")


def test_a_kernel_of_known_answer():
    """One source, two neighbours of which one is hidden or lies at a right angle."""
    rows = jnp.asarray([[1.0, 0, 0], [0, 5.0, 0]])
    encoder = attached(Bank({"network": rows}, {"network": jnp.ones(2, bool)}))
    given = conditions(n=1, tokens=1)
    given = given._replace(
        present=jnp.ones((1, 1), bool), sources=given.sources | {"network": jnp.asarray([[[0.0, 2.0, 0.0]]])}
    )
    told = {"network": jnp.ones((1, 1), bool)}
    values = np.asarray(encoder.neighbours.values[...])
    free = encoder.neighbours(given._replace(own=jnp.full((1, 1), -1)), told)[0, 0]
    near = 1 / (1 + np.exp(-10.0))
    np.testing.assert_allclose(free, near * values[1] + (1 - near) * values[0], atol=1e-4)
    hidden = encoder.neighbours(given._replace(own=jnp.ones((1, 1), int)), told)[0, 0]
    np.testing.assert_allclose(hidden, values[0], atol=1e-5)
    nothing = encoder.neighbours(given._replace(own=jnp.ones((1, 1), int)), {"network": jnp.zeros((1, 1), bool)})
    assert (np.asarray(nothing) == 0).all()


def test_a_perturbation_never_reads_its_own_value():
    encoder, bank, given = banked()
    graph, params, buffers = nnx.split(encoder, nnx.Param, ...)
    place = 2

    def total(params, own):
        tokens = nnx.merge(graph, params, buffers)(given._replace(own=own), jax.random.key(0)).tokens
        return jnp.sum(tokens[0, 0])

    def slope(own):
        return jax.grad(total)(params, given.own.at[0, 0].set(own))["neighbours"]["values"][...]

    hidden, unseen = slope(place), slope(-1)
    assert (np.asarray(hidden[place]) == 0).all() and np.abs(hidden).max() > 1e-6
    shared = any(bool(bank.known[name][place] & given.known[name][0, 0]) for name in DIMS)
    assert shared == bool(np.abs(unseen[place]).max() > 0)


def test_the_order_of_the_bank_and_what_it_does_not_know_do_not_matter():
    encoder, bank, given = banked()
    order = np.array([3, 0, 7, 1, 6, 2, 5, 4])
    where = np.argsort(order)
    other = attached(jax.tree.map(lambda a: a[order], bank))
    other.neighbours.values[...] = encoder.neighbours.values[...][order]
    own = jnp.where(given.own >= 0, jnp.asarray(where)[given.own], -1)
    close(other(given._replace(own=own)), encoder(given))
    noisy = {k: jnp.where(bank.known[k][:, None], v, 99.0) for k, v in bank.sources.items()}
    poisoned = attached(bank._replace(sources=noisy))
    close(poisoned(given), encoder(given))
    noise = {k: jnp.where(given.known[k][..., None], v, 99.0) for k, v in given.sources.items()}
    close(encoder(given._replace(sources=noise)), encoder(given))
