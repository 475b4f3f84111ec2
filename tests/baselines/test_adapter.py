"""The adapter baseline: what it learns, what it must not read, and its loss against the definition."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from scbig import baselines, losses
from scbig.baselines import Embedding, TrainingData, adapter
from scbig.baselines.adapter_network import Targets, quadratic
from scbig.baselines.adapter_tokens import build_tokens, gene_vectors
from scbig.errors import InputError

N, SEEN, GENES = 90, 66, tuple(f"x{i}" for i in range(48))
NAMES = tuple(f"P{i}" for i in range(N))
SMALL = {
    "n_tokens": 6, "n_patterns": 5, "neighbours": 2, "width": 32, "latent": 16, "adapter_width": 8, "epochs": 40,
    "folds": 2, "seeds": 1,
}  # fmt: skip


def world(vectors, truth, rows=range(SEEN), mask=None) -> TrainingData:
    rows = list(rows)
    return TrainingData(
        genes=GENES,
        conditions=tuple(NAMES[i] for i in rows),
        contexts=("all",) * len(rows),
        effects=truth[rows].astype(np.float32),
        n_cells=np.ones(len(rows), np.int64),
        embeddings={"a": Embedding(NAMES, vectors, np.ones(N, bool) if mask is None else mask)},
    )


@pytest.fixture(scope="module")
def planted():
    """What a gene does is linear in its vector; measured genes have vectors of the same kind."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(N, 6))
    truth = rng.normal(size=48) + a @ rng.normal(size=(6, 48)) + 0.3 * rng.normal(size=(N, 48))
    measured = rng.normal(size=(48, 5))
    return a, truth, Embedding(GENES, measured, np.arange(48) % 7 != 0)


@pytest.fixture(scope="module")
def fitted(planted):
    a, truth, measured = planted
    return baselines.fit("adapter", world(a, truth), gene_embeddings=measured, **SMALL)


def skill(model, truth):
    mean = truth[:SEEN].mean(axis=0)
    x = model.predict(NAMES[SEEN:]) - mean
    return np.mean([np.corrcoef(p, truth[SEEN + i] - mean)[0, 1] for i, p in enumerate(x)])


def test_a_planted_map_is_learned_and_accounted_for(fitted, planted):
    found = fitted.account(NAMES[SEEN], "all")
    assert skill(fitted, planted[1]) > 0.7 and found["basis"] == "adapter" and found["skill"] > 0.5
    assert 0.5 < found["kept"] <= 1 and "6 modules by gene embeddings" in fitted.notes[-1]


def test_its_settings_give_the_same_model_without_the_search(fitted, planted):
    a, truth, measured = planted
    again = adapter.fit(world(a, truth), gene_embeddings=measured, **SMALL, **fitted.settings)
    np.testing.assert_allclose(again.predict(NAMES[SEEN:]), fitted.predict(NAMES[SEEN:]), atol=1e-5)
    assert "as given" in again.notes[0]


def test_random_vectors_fall_back_to_the_mean(planted):
    noise = np.random.default_rng(8).normal(size=(N, 6))
    model = adapter.fit(world(noise, planted[1]), adapter=False, **SMALL)
    kept = model.account(NAMES[SEEN], "all")["kept"]
    mean = planted[1][:SEEN].mean(axis=0)
    if kept == 0:
        np.testing.assert_allclose(model.predict(NAMES[SEEN:]), np.tile(mean, (N - SEEN, 1)), atol=1e-5)
    assert kept < 0.2


def test_masked_vectors_test_genes_and_order_change_nothing(fitted, planted):
    a, truth, measured = planted
    poison = replace(measured, vectors=np.where(measured.mask[:, None], measured.vectors, np.nan))
    order = np.random.default_rng(1).permutation(SEEN)
    changed = np.where(np.arange(N)[:, None] > SEEN, 100.0, a)
    again = adapter.fit(world(changed, truth, order), gene_embeddings=poison, **SMALL)
    np.testing.assert_allclose(again.predict([NAMES[SEEN]]), fitted.predict([NAMES[SEEN]]), atol=1e-3)


def test_without_gene_embeddings_modules_come_from_training(planted):
    model = adapter.fit(world(planted[0], planted[1]), adapter=False, **SMALL)
    assert "co-response" in model.notes[-1] and skill(model, planted[1]) > 0.6


def test_reasons_and_refusals(fitted, planted):
    assert fitted.skipped(["P1+Z"])[0].reason == "no vector in a: Z"
    assert not fitted.predict(["control"]).any()
    data = world(planted[0], planted[1])
    with pytest.raises(InputError, match="mask is one of go, none, random"):
        adapter.fit(data, mask="reactome")
    few = adapter.fit(world(planted[0], planted[1], range(2)))
    assert "2 training conditions can be used" in few.skipped([NAMES[0]])[0].reason


def test_the_patterns_are_orthonormal_and_modules_hold_every_gene_once(planted):
    _, truth, measured = planted
    effects = (truth[:SEEN] - truth[:SEEN].mean(axis=0)).astype(np.float32)
    vectors, response = gene_vectors(effects, GENES, measured.rows())
    tokens = build_tokens(effects, GENES, vectors, response, 6, 3, 0)
    gram = tokens.basis @ tokens.basis.T
    lengths = np.diag(gram)
    np.testing.assert_allclose(gram, np.diag(lengths), atol=1e-5)
    assert np.isin(np.round(lengths, 4), [0, 1]).all() and sorted(set(tokens.module)) == list(range(6))
    assert tokens.touch("unknown", vectors).any() == False  # noqa: E712
    np.testing.assert_allclose(
        tokens.touch("x1+x2", vectors), tokens.touch("x1", vectors) + tokens.touch("x2", vectors), atol=1e-5
    )


def test_the_quadratic_form_is_the_weighted_loss(planted):
    """Up to a constant, the error over genes is the one of coefficients, under uniform and under differential weights."""
    _, truth, measured = planted
    effects = (truth[:SEEN] - truth[:SEEN].mean(axis=0)).astype(np.float32)
    vectors, response = gene_vectors(effects, GENES, measured.rows())
    tokens = build_tokens(effects, GENES, vectors, response, 6, 3, 0)
    from scbig.baselines import adapter_network

    targets, scale = adapter._targets(adapter_network, effects, effects, np.arange(SEEN), tokens, True)
    assert isinstance(targets, Targets)
    rng = np.random.default_rng(3)
    one, other = (jnp.asarray(rng.normal(size=(SEEN, 6, 3)), jnp.float32) for _ in range(2))
    weights = losses.differential_weights(effects, losses.noise_floor(effects))
    for share in (0.0, 0.4, 1.0):
        mixed = losses.mixed_weights(jnp.asarray(weights), share)

        def error(found, mixed=mixed):
            over_genes = scale * found.reshape(SEEN, -1) @ jnp.asarray(tokens.basis)
            return len(GENES) * losses.weighted_effect_loss(over_genes, jnp.asarray(effects), mixed)

        gap = scale**2 * (quadratic(one, targets, share) - quadratic(other, targets, share))
        np.testing.assert_allclose(gap, error(one) - error(other), rtol=2e-3, atol=2e-2)
