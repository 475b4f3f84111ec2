import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from scbig.nn import adapter as nn_adapter
from scbig.nn.adapter import AdapterConfig, MaskedAttention, PerturbationAdapter, nearest, shuffled

TOKENS, DIMS, CONDITION = 12, 5, 4


def given(rows=3, seed=0, n=TOKENS):
    rng = np.random.default_rng(seed)
    tokens, condition, touch = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((n, DIMS), (rows, CONDITION), (rows, n))
    )
    return tokens, condition, touch


def awake(n_out=2, **changes):
    """An adapter whose head is not at zero."""
    config = AdapterConfig(**{"width": 8, "heads": 2, "dropout": 0.0} | changes)
    net = PerturbationAdapter(config, DIMS, CONDITION, n_out, rngs=nnx.Rngs(params=0))
    if n_out:
        net.head.kernel[...] = jnp.asarray(
            np.random.default_rng(5).normal(size=net.head.kernel[...].shape), jnp.float32
        )
    return net


@nnx.jit
def run(net, *inputs):
    """One program instead of one for every operation."""
    return net(*inputs)


def test_nearest_are_the_nearest_and_unknown_tokens_stand_alone():
    angle = np.deg2rad([0, 10, 25, 180, 90])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.array([[1.0], [5], [0.1], [1], [1]])
    found = nearest(vectors, np.array([1, 1, 1, 1, 0], bool), 2)
    assert found.index[:4].tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0], [3, 2, 1]]
    assert found.known.tolist() == [[True] * 3] * 4 + [[True, False, False]] and (found.index[4] == 4).all()
    assert nearest(vectors, np.ones(5, bool), 99).index.shape == (5, 5)


def test_a_random_mask_has_as_many_neighbours():
    rng = np.random.default_rng(0)
    mask = nearest(rng.normal(size=(TOKENS, 3)), np.arange(TOKENS) > 1, 4)
    drawn = shuffled(mask, rng)
    np.testing.assert_array_equal(drawn.known, mask.known)
    for token in range(TOKENS):
        allowed = drawn.index[token][drawn.known[token]]
        assert allowed[0] == token and len(set(allowed)) == len(allowed)
    assert (drawn.index[2:] != mask.index[2:]).mean() > 0.3


@pytest.mark.parametrize("dense", [True, False])
def test_the_mask_is_honoured(dense, monkeypatch):
    """A token that is no neighbour has no say, one that is has; in both ways of computing it."""
    monkeypatch.setattr(nn_adapter, "_DENSE", TOKENS if dense else 0)
    tokens, condition, touch = given()
    mask = nearest(np.random.default_rng(1).normal(size=(TOKENS, 3)), np.ones(TOKENS, bool), 3)
    net, run = awake(), nnx.jit(lambda net, *inputs: net(*inputs))  # a program of its own in either way
    plain = run(net, tokens, condition, touch, mask)
    changed = np.asarray(run(net, tokens.at[7].add(3.0), condition, touch, mask) - plain)
    sees = np.array([7 in mask.index[token] for token in range(TOKENS)])
    assert 1 < sees.sum() < TOKENS
    assert (changed[:, ~sees] == 0).all() and (np.abs(changed[:, sees]).max(axis=(0, 2)) > 1e-4).all()
    marked = np.asarray(run(net, tokens, condition, touch.at[:, 7].add(3.0), mask) - plain)
    assert (marked[:, ~sees] == 0).all() and (np.abs(marked[:, sees]).max(axis=(0, 2)) > 1e-4).all()


def test_gathered_and_masked_attention_agree(monkeypatch):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, TOKENS, 8)), jnp.float32)
    mask = nearest(np.random.default_rng(3).normal(size=(TOKENS, 3)), np.arange(TOKENS) != 4, 3)
    attention = MaskedAttention(8, 2, rngs=nnx.Rngs(params=0))
    dense = attention(x, mask)
    monkeypatch.setattr(nn_adapter, "_DENSE", 0)
    np.testing.assert_allclose(attention(x, mask), dense, atol=1e-5)
    every = nearest(np.ones((TOKENS, 1)), np.ones(TOKENS, bool), TOKENS)
    np.testing.assert_allclose(attention(x, every), attention(x, None), atol=1e-5)


def test_the_order_of_tokens_does_not_matter():
    tokens, condition, touch = given()
    vectors = np.random.default_rng(1).normal(size=(TOKENS, 3))
    order = np.random.default_rng(2).permutation(TOKENS)
    net, known = awake(), np.ones(TOKENS, bool)
    turned = run(net, tokens[order], condition, touch[:, order], nearest(vectors[order], known, 3))
    np.testing.assert_allclose(
        turned, run(net, tokens, condition, touch, nearest(vectors, known, 3))[:, order], atol=1e-5
    )


def test_it_starts_silent_depends_on_the_perturbation_and_takes_tokens_of_each_row():
    tokens, condition, touch = given()
    new = PerturbationAdapter(AdapterConfig(width=8, heads=2), DIMS, CONDITION, rngs=nnx.Rngs(params=0))
    assert (np.asarray(run(new, tokens, condition, touch)) == 0).all()
    net = awake()
    out = run(net, tokens, condition)
    assert out.shape == (3, TOKENS, 2) and np.abs(out[0] - out[1]).max() > 1e-3
    each = jnp.broadcast_to(tokens[None], (3, *tokens.shape))
    np.testing.assert_allclose(run(net, each, condition), out, atol=1e-5)
    assert run(awake(n_out=0), tokens, condition).shape == (3, TOKENS, 8)


def test_an_effect_on_neighbours_is_found_for_tokens_never_perturbed_and_by_the_right_mask_alone():
    """What a perturbation does is seen at its neighbours only, and its embedding says nothing: only the mask tells."""
    n, rng = 40, np.random.default_rng(0)
    mask = nearest(rng.normal(size=(n, 3)), np.ones(n, bool), 4)
    truth = np.zeros((n, n), np.float32)
    for token in range(n):
        truth[mask.index[token][1:], token] = 1.0  # [perturbed, token]: the perturbed one is among its neighbours
    tokens, flat = jnp.asarray(rng.normal(size=(n, DIMS)), jnp.float32), jnp.zeros((n, CONDITION))
    seen = np.arange(n) < 28

    def skill(neighbours):
        net = PerturbationAdapter(
            AdapterConfig(width=8, heads=2, dropout=0.0), DIMS, CONDITION, rngs=nnx.Rngs(params=1)
        )
        graph, params = nnx.split(net)
        optimizer = optax.adam(2e-2)

        def predicted(params):
            return nnx.merge(graph, params)(tokens, flat, jnp.eye(n), neighbours)[..., 0]

        @jax.jit
        def fitted(params):
            def step(carry, _):
                params, state = carry
                slope = jax.grad(lambda p: jnp.mean(jnp.square(predicted(p) - truth)[:28]))(params)
                update, state = optimizer.update(slope, state)
                return (optax.apply_updates(params, update), state), None

            return predicted(jax.lax.scan(step, (params, optimizer.init(params)), length=200)[0][0])

        out = np.asarray(fitted(params))
        return np.corrcoef(out[~seen].ravel(), truth[~seen].ravel())[0, 1]

    assert skill(mask) > 0.9
    assert skill(shuffled(mask, rng)) < 0.4
