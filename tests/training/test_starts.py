"""Moved controls: what an anchored flow starts from."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import rng
from scbig.data.store import Rows
from scbig.nn import GCAEConfig, ModuleLayout
from scbig.training import autoencoder
from scbig.training.autoencoder import encode_all
from scbig.training.populations import build, displacements, draw, watch
from scbig.training.starts import Starts
from scbig.training.vocabulary import Vocabulary, group_cells

GENES = 12


@pytest.fixture
def screen():
    random = np.random.default_rng(0)
    condition = np.repeat(["control", "A", "B"], [80, 30, 40])
    obs = pd.DataFrame({"condition": condition, "context": "all", "batch": np.resize(["1", "2"], 150)})
    x = random.gamma(1.0, 1.0, (150, GENES)).astype(np.float32) * (random.random((150, GENES)) < 0.6)
    layout = ModuleLayout(np.arange(GENES, dtype=np.int32).reshape(3, 4), np.ones((3, 4), bool))
    auto = autoencoder.new(GCAEConfig(width=8, depth=1, heads=2, latent=4, encoder="mlp", decoder="mlp"), layout, 0)
    number, groups = group_cells(obs)
    conditions = Vocabulary.build({}, ["A", "B"], True, {}, ["all"]).conditions(groups)
    effects = np.stack([np.full(GENES, 0.5), np.linspace(-0.2, 0.6, GENES)]).astype(np.float32)
    return x.astype(np.float32), obs, number, groups, conditions, auto, effects


def starts_of(x, auto, effects, how="shift"):
    return Starts(Rows.of(sp.csr_matrix(x)), np.arange(80), effects, auto, lambda cells: cells[:, :3], how)


def test_sources_are_the_encoded_moved_controls_of_the_group_and_batch(screen):
    x, obs, number, groups, conditions, auto, effects = screen
    z = encode_all(auto, x)
    populations, _ = build(
        z, obs, np.ones(150, bool), number, groups, conditions, by_batch=True, coupling="independent", epsilon=0.05,
        seed=0, starts=starts_of(x, auto, effects), most=20,
    )  # fmt: skip
    # Shifted cells do not depend on which others are moved with them, so that each can be found again.
    moved = {g: encode_all(auto, x[:80] + effects[g]) for g in range(2)}
    at = np.asarray(populations.z)
    np.testing.assert_array_equal(at[:150], z)
    for step in range(20):
        chosen, source, target = map(np.asarray, draw(rng.key(0, "b", step), populations, 2, 8, "independent"))
        for g, sources, cells in zip(chosen, source, target, strict=True):
            gap = np.abs(at[sources][:, None] - moved[int(g)][None]).max(axis=-1)
            assert gap.min(axis=1).max() < 1e-5
            assert (obs["batch"].to_numpy()[gap.argmin(axis=1)] == obs["batch"].to_numpy()[cells]).all()
            assert (number[cells] == g).all()
    assert len(at) == 150 + 2 * 20


def test_an_anchor_that_is_right_leaves_no_mean_displacement(screen):
    x, obs, number, groups, conditions, auto, effects = screen

    for g in range(2):
        x[number == g] = x[:80].mean(axis=0) + effects[g]
    starts = starts_of(x, auto, effects)
    # Encoded by the first four genes, so that means move as the effect says.
    starts.latents = lambda jobs: [starts.cells(*job)[:, :4] for job in jobs]
    populations, _ = build(
        x[:, :4].copy(), obs, np.ones(150, bool), number, groups, conditions, by_batch=False, coupling="independent",
        epsilon=0.05, seed=0, starts=starts, most=80,
    )  # fmt: skip
    np.testing.assert_allclose(displacements(populations), 0.0, atol=1e-5)


def test_precomputed_partners_are_moved_cells_of_the_group(screen):
    x, obs, number, groups, conditions, auto, effects = screen
    populations, report = build(
        encode_all(auto, x), obs, np.ones(150, bool), number, groups, conditions, by_batch=False, coupling="precomputed",
        epsilon=0.05, seed=0, starts=starts_of(x, auto, effects), most=16,
    )  # fmt: skip
    pairs, start, count = (np.asarray(each) for each in (populations.pairs, populations.start, populations.count))
    for g, (a, n) in enumerate(zip(start, count, strict=True)):
        assert set(pairs[a : a + n].ravel().tolist()) <= set(range(150 + 16 * g, 150 + 16 * (g + 1)))
    assert report["coupling_perplexity"] > 1


def test_watched_cells_start_moved_and_are_compared_with_controls_that_are_not(screen):
    x, obs, number, groups, conditions, auto, effects = screen
    held = np.random.default_rng(1).random(150) < 0.5
    watched = watch(
        encode_all(auto, x), x[:, :3], obs, held, number, groups, conditions, 1, 10, 5, 0, starts_of(x, auto, effects)
    )
    place = np.asarray(watched.place)
    assert set(place.tolist()) == {0, 1} and np.asarray(watched.trained).tolist() == [p < 1 for p in place]
    for i, g in enumerate(place):
        np.testing.assert_allclose(watched.start[i] - watched.control[i], np.tile(effects[g, :3], (10, 1)), atol=1e-5)


def test_latents_do_not_depend_on_how_jobs_are_packed(screen):
    x, _, _, _, _, auto, effects = screen
    starts = starts_of(x, auto, effects, "scale")
    jobs = [(0, np.arange(30)), (1, np.arange(10, 50)), (0, np.array([5, 5, 7]))]
    together = starts.latents(jobs)
    for job, found in zip(jobs, together, strict=True):
        np.testing.assert_allclose(found, starts.latents([job])[0], atol=1e-6)
        np.testing.assert_allclose(found, encode_all(auto, starts.cells(*job)), atol=1e-6)
