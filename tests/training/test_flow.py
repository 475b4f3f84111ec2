"""Stage 2 on a small analytic screen: three conditions of very unequal size that shift a Gaussian by known amounts."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from scbig.errors import InputError
from scbig.nn import ConditionEncoderConfig, FlowNet, FlowNetConfig, GCAEConfig, ModuleLayout
from scbig.training import autoencoder
from scbig.training import flow as stage
from scbig.training.flow import Alignment, FlowConfig, FlowTask, sample_latents, train_flow
from scbig.training.holdout import hold_out
from scbig.training.populations import build, displacements, watch
from scbig.training.vocabulary import Vocabulary, group_cells

LATENT, GENES = 4, 12
SHIFTS = {"A": np.array([2.0, 0, 0, 0]), "B": np.array([0, -1.5, 0, 0]), "C": np.array([0, 0, 0.0, 1.0])}
SETTINGS = FlowConfig(
    steps=600, conditions=3, cells=32, learning_rate=3e-3, warmup=10, ema=0.98, coupling="independent", lambda_corr=0.01,
    lambda_path=0.01, align_conditions=2, align_cells=8, evaluate_every=100, chunk=50, patience=0, checkpoint_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    sizes = {"control": 500, "A": 300, "B": 40, "C": 150}
    condition = np.repeat(list(sizes), list(sizes.values()))
    z = rng.normal(size=(len(condition), LATENT)) * 0.5
    for name, shift in SHIFTS.items():
        z[condition == name] += shift
    z = z.astype(np.float32)
    obs = pd.DataFrame({"condition": condition, "context": "all", "batch": "all"})
    train, kept = hold_out(obs, np.ones(len(obs), bool), 0.2, 0)
    number, groups = group_cells(obs)
    conditions = Vocabulary.build({}, list(SHIFTS), True, {}, ["all"]).conditions(groups)
    layout = ModuleLayout(np.arange(GENES, dtype=np.int32).reshape(3, 4), np.ones((3, 4), bool))
    config = GCAEConfig(width=8, depth=1, heads=2, latent=LATENT, decoder="mlp", encoder="mlp")
    auto = autoencoder.new(config, layout, 0)
    x = autoencoder.decode_all(auto, z)
    loadings = np.linalg.qr(rng.normal(size=(GENES, 3)))[0].astype(np.float32)
    populations, _ = build(
        z,
        obs,
        train,
        number,
        groups,
        conditions,
        by_batch=False,
        coupling="independent",
        epsilon=0.05,
        seed=0,
    )
    watched = watch(z, x @ loadings, obs, kept, number, groups, conditions, len(groups), 32, 8, 0)
    averaging = np.kron(np.eye(3), np.full((1, 4), 0.25)).astype(np.float32)
    alignment = Alignment(
        *map(
            jnp.asarray,
            (np.tile(np.eye(3, dtype=np.float32), (3, 1, 1)), averaging, averaging, x @ averaging.T),
        )
    )
    return FlowTask(None, populations, auto, alignment, watched, jnp.asarray(loadings), jnp.zeros(GENES))


def network():
    return FlowNet(
        FlowNetConfig(latent=LATENT, width=48, dropout=0.0), ConditionEncoderConfig(width=16), {"identity": 3},
        rngs=nnx.Rngs(params=0),
    )  # fmt: skip


def test_it_learns_known_shifts_in_one_compilation_each(task, tmp_path):
    stage.advance.clear_cache()
    stage._held_out_distance.clear_cache()
    state = train_flow(network(), task, SETTINGS, 0, tmp_path / "c", tmp_path)
    assert stage.advance._cache_size() == 1 and stage._held_out_distance._cache_size() == 1
    graph, _ = nnx.split(network())
    trained = nnx.merge(graph, state.best)
    z0 = 0.5 * jax.random.normal(jax.random.key(1), (3, 400, LATENT))
    z1 = sample_latents(trained, trained.encode(task.populations.conditions), z0, 10, "heun")
    moved = np.asarray(z1.mean(1) - z0.mean(1))
    np.testing.assert_allclose(moved, np.stack(list(SHIFTS.values())), atol=0.25)
    np.testing.assert_allclose(np.asarray(z1.std(1)), 0.5, atol=0.15)


def test_killed_and_continued_training_ends_in_the_same_bits(task, tmp_path, monkeypatch):
    from dataclasses import replace

    settings = replace(SETTINGS, steps=300)
    whole = train_flow(network(), task, settings, 0, tmp_path / "a/c", tmp_path / "a")
    original, calls = stage.advance, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(stage, "advance", dies)
        with pytest.raises(KeyboardInterrupt):
            train_flow(network(), task, settings, 0, tmp_path / "b/c", tmp_path / "b")
    resumed = train_flow(network(), task, settings, 0, tmp_path / "b/c", tmp_path / "b")
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    other = train_flow(network(), task, settings, 1, tmp_path / "d/c", tmp_path / "d")
    assert not np.array_equal(
        whole.params["velocity"]["enter"]["kernel"][...], other.params["velocity"]["enter"]["kernel"][...]
    )


@pytest.mark.parametrize("coupling", ["sinkhorn", "exact"])
def test_both_alignment_terms_reach_the_gradient_of_every_step(task, coupling):
    from dataclasses import replace

    graph, params, buffers = nnx.split(network(), nnx.Param, ...)
    task = task._replace(buffers=buffers, displacement=jnp.asarray(displacements(task.populations)))
    # From rest the endpoint does not depend on anything, so move first.
    params = jax.tree.map(lambda p: p + 0.05, params)

    def gradient(corr, path, every=1, step=4):
        settings = replace(SETTINGS, coupling=coupling, lambda_corr=corr, lambda_path=path, align_every=every)
        grads, metrics = jax.jit(
            lambda p: jax.grad(stage._objective, has_aux=True)(p, graph, task, settings, 0, jnp.asarray(step))
        )(params)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)]), metrics

    plain, metrics = gradient(0.0, 0.0)
    assert "corr" not in metrics
    np.testing.assert_allclose(metrics["loss"], metrics["flow"] + metrics["shift"], rtol=1e-5)
    for corr, path in ((1.0, 0.0), (0.0, 1.0)):
        aligned, metrics = gradient(corr, path)
        assert np.isfinite(aligned).all() and np.linalg.norm(aligned - plain) > 1e-6
        np.testing.assert_allclose(
            metrics["loss"],
            metrics["flow"] + metrics["shift"] + corr * metrics["corr"] + path * metrics["path"],
            rtol=1e-5,
        )
        # In every second step with twice the weight, and not at all in the one between.
        rare, metrics_of_two = gradient(corr, path, every=2)
        np.testing.assert_allclose(rare - plain, 2.0 * (aligned - plain), atol=1e-5)
        np.testing.assert_allclose(metrics_of_two["corr"], 2.0 * metrics["corr"], rtol=1e-5)
        between, metrics = gradient(corr, path, every=2, step=5)
        np.testing.assert_allclose(between, gradient(0.0, 0.0, step=5)[0], atol=1e-6)
        assert metrics["corr"] == metrics["path"] == 0.0


def test_times_that_do_not_divide_the_cells_are_refused(task, tmp_path):
    from dataclasses import replace

    with pytest.raises(InputError, match="32 cells of a condition cannot share 5 times"):
        train_flow(network(), task, replace(SETTINGS, times=5), 0, tmp_path / "c", tmp_path)
    assert not (tmp_path / "c").exists()
