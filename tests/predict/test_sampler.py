"""Sampling from a real run: what is drawn, from where, and how often it compiles."""

from dataclasses import replace

import anndata as ad
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from flax import nnx

from scbig import predict, training
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError
from scbig.predict import reading, residuals, tiles
from scbig.predict.residuals import Residuals
from scbig.training.vocabulary import Group


@pytest.fixture(scope="module")
def predictor(tiny_run):
    """Of a run without an anchor; ``test_anchored.py`` has one."""
    return replace(predict.load(tiny_run), anchor=None)


@pytest.fixture(scope="module")
def prepared(tiny_run):
    return ad.read_h5ad(tiny_run / "prepared.h5ad")


@pytest.fixture(scope="module")
def labels(prepared):
    """All conditions of the screen; singles first."""
    return sorted(set(prepared.obs["condition"].astype(str)) - {CONTROL}, key=lambda c: (len(genes_of(c)), c))


def of(cells, condition):
    return cells[(cells.obs["condition"] == condition).to_numpy()]


def test_the_autoencoder_is_the_trained_one_with_its_genes_in_order(predictor, prepared, tiny_run):
    # A panel in another order than the modules' would decode to scrambled genes without any complaint.
    latents = ad.read_zarr(tiny_run / "latents.zarr")
    assert list(latents.obs_names) == list(prepared.obs_names)
    np.testing.assert_allclose(training.encode_all(predictor.auto, prepared.X), latents.X, atol=1e-4)
    decoded = training.decode_all(predictor.auto, np.asarray(latents.X))
    means = np.corrcoef(decoded.mean(0), np.asarray(prepared.X.mean(0)).ravel())[0, 1]
    assert means > 0.7  # three epochs; scrambled genes give about 0


def test_the_same_seed_gives_the_same_cells_and_another_one_others(predictor, labels):
    first = predictor.sample(labels[:2], 20, seed=3)
    np.testing.assert_array_equal(first.X, predictor.sample(labels[:2], 20, seed=3).X)
    assert list(first.obs["source_cell"]) != list(predictor.sample(labels[:2], 20, seed=4).obs["source_cell"])
    default = predictor.sample(labels[:2], 20)
    np.testing.assert_array_equal(default.X, predictor.sample(labels[:2], 20, seed=predictor.settings.seed).X)


def test_the_order_of_genes_in_a_name_does_not_matter(predictor, labels):
    a, b = labels[0], labels[1]
    one, other = predictor.sample([f"{a}+{b}"], 20), predictor.sample([f"{b}+{a}"], 20)
    np.testing.assert_array_equal(one.X, other.X)
    assert set(other.obs["condition"]) == {join([a, b])}


def test_cells_start_from_real_controls_of_the_context(predictor, prepared, labels):
    cells = predictor.sample(labels[:3], 25)
    sources = prepared.obs.loc[cells.obs["source_cell"]]
    assert (sources["condition"].astype(str) == CONTROL).all()
    assert (sources["context"].astype(str).to_numpy() == cells.obs["context"].astype(str).to_numpy()).all()
    assert (sources["batch"].astype(str).to_numpy() == cells.obs["batch"].astype(str).to_numpy()).all()
    for label in labels[:3]:
        assert of(cells, label).obs["source_cell"].is_unique  # without replacement while there are enough


def test_a_context_draws_its_own_controls_and_a_strange_one_is_refused(predictor):
    half = len(predictor.controls) // 2
    context = np.array(["here"] * half + ["there"] * (len(predictor.controls) - half))
    two = replace(
        predictor,
        controls=predictor.controls.assign(context=context),
        vocabulary=replace(predictor.vocabulary, contexts=("here", "there")),
    )
    names = {where: set(two.controls.index[context == where]) for where in ("here", "there")}
    for where in ("here", "there"):
        assert set(two.sample(["control"], 10, context=where).obs["source_cell"]) <= names[where]
    with pytest.raises(InputError, match="several contexts; choose one with --context: here, there"):
        two.sample(["control"], 10)
    with pytest.raises(InputError, match="elsewhere"):
        two.sample(["control"], 10, context="elsewhere")
    both = two.sample(["control", "control"], 10, context=["here", "there"])
    assert list(both.varm["spread"].columns) == ["control:here", "control:there"] and both.obs_names.is_unique
    with pytest.raises(InputError, match="1 contexts were given for 2 conditions"):
        two.sample(["control", "X"], 10, context=["here"])


def with_settings(predictor, residual, clip=True):
    settings = predictor.settings.copy_and_resolve_references()
    settings.flow.residual, settings.sample.clip = residual, clip
    return replace(predictor, settings=settings)


def test_control_stays_where_it_is(predictor):
    cells = with_settings(predictor, residual=False).sample(["control"], 30)
    z0 = predictor.z0[predictor.controls.index.get_indexer(cells.obs["source_cell"])]
    np.testing.assert_allclose(cells.obsm["X_latent"], z0, atol=1e-6)
    decoded = np.asarray(predictor.auto.decode(jnp.asarray(z0)))
    np.testing.assert_allclose(cells.X, np.maximum(decoded, 0.0), atol=1e-4)


def test_with_residuals_control_is_the_real_cells_moved_to_the_mean_of_all(predictor, prepared):
    bare = with_settings(predictor, residual=True, clip=False)
    cells = bare.sample(["control"], 30)
    shift = cells.X - prepared[cells.obs["source_cell"].to_numpy()].X.toarray()
    np.testing.assert_allclose(shift, np.broadcast_to(shift[:1], shift.shape), atol=1e-4)
    every = bare.sample(["control"], len(predictor.controls))
    np.testing.assert_allclose(every.X, prepared[every.obs["source_cell"].to_numpy()].X.toarray(), atol=1e-4)


def test_perturbed_cells_do_not_stay(predictor, labels):
    cells = predictor.sample(labels[:1], 30)
    z0 = predictor.z0[predictor.controls.index.get_indexer(cells.obs["source_cell"])]
    assert np.abs(cells.obsm["X_latent"] - z0).mean() > 1e-3


def test_one_program_serves_any_number_of_conditions_and_of_cells(predictor, labels):
    # Singles alone in one block and doubles in another must not have other shapes.
    nine = labels[:6] + labels[-3:]
    assert len({len(genes_of(c)) for c in nine}) == 2
    tiles._tile.clear_cache()
    tiles._encode.clear_cache()
    cells = predictor.sample(nine, 13)
    for names, n_cells in ((nine[::-1][:5], 13), (nine[:2], 200), (["control"], 1), (nine, 65)):
        assert predictor.sample(names, n_cells).n_obs == len(names) * n_cells
    assert tiles._tile._cache_size() == tiles._encode._cache_size() == 1
    assert list(dict.fromkeys(cells.obs["condition"])) == nine and cells.n_obs == 9 * 13


@pytest.mark.parametrize("residual", [True, False])
def test_tiles_give_what_the_whole_gives_at_once(predictor, labels, residual):
    # 70 cells make three rows of a tile, the last one with six; nine conditions more rows than a tile has.
    names, n_cells = labels[:6] + labels[-3:], 70
    plain = with_settings(predictor, residual=residual)
    cells = plain.sample(names, n_cells)
    rows = predictor.controls.index.get_indexer(cells.obs["source_cell"]).reshape(len(names), n_cells)
    network = nnx.merge(predictor.graph, predictor.params)
    given = predictor.vocabulary.conditions([Group(name, predictor.vocabulary.contexts[0]) for name in names])
    flow = predictor.settings.flow
    z1 = training.sample_latents(
        network, network.encode(given), jnp.asarray(predictor.z0[rows]), flow.solver_steps, flow.solver
    )
    x = training.decode_all(predictor.auto, np.asarray(z1).reshape(rows.size, -1)).reshape(*rows.shape, -1)
    if residual:
        every = predictor.x0.toarray() - training.decode_all(predictor.auto, predictor.z0)
        x = x + every[rows] - every[rows].mean(axis=1, keepdims=True) + every[:2000].mean(axis=0)
    np.testing.assert_allclose(cells.obsm["X_latent"], np.asarray(z1).reshape(rows.size, -1), atol=1e-4)
    np.testing.assert_allclose(cells.X, np.maximum(x, 0.0).reshape(rows.size, -1), atol=1e-4)


def test_each_condition_is_encoded_once_and_each_control_decoded_once(predictor, labels, monkeypatch):
    fresh, encoded, decoded = replace(predictor), [], []
    encode, decode = tiles._encode, residuals.decode_all
    monkeypatch.setattr(tiles, "_encode", lambda *args, **kw: encoded.append(1) or encode(*args, **kw))
    monkeypatch.setattr(residuals, "decode_all", lambda auto, z: decoded.append(len(z)) or decode(auto, z))
    for _ in range(2):
        fresh.sample(labels[:3], 500)
    assert len(encoded) == 2 and sum(decoded) == len(predictor.controls)


def test_the_mean_residual_counts_repeated_cells_as_often_as_they_come(predictor):
    x = sp.csr_matrix(np.arange(12, dtype=np.float32).reshape(4, 3))
    known = Residuals(predictor.auto, np.zeros((4, 3), np.float32), x)
    known.table[:], known._known[:] = x.toarray(), True
    rows = np.array([0, 3, 3, 1, 3])
    np.testing.assert_allclose(known.mean(rows), x.toarray()[rows].mean(axis=0), rtol=1e-6)


def test_fewer_controls_are_kept_where_there_are_too_many():
    table = pd.DataFrame({"condition": "control", "part": "train", "context": ["a"] * 90 + ["b"] * 10})
    kept = reading._controls(table, 20, 0)
    assert len(kept) == 20 and (np.diff(kept) > 0).all() and (kept >= 90).sum() == 10
    assert np.array_equal(kept, reading._controls(table, 20, 0))
    assert not np.array_equal(kept, reading._controls(table, 20, 1))
    assert np.array_equal(reading._controls(table, 100, 0), np.arange(100))
    table.loc[[3, 95, 97], "part"] = "test"
    assert reading._controls(table, 20, 0).tolist() == [3, 95, 97]


def test_a_condition_does_not_depend_on_its_company(predictor, labels):
    many = labels[:4] + labels[-3:]
    together = predictor.sample(many, 15)
    for label in (many[0], many[3], many[4], many[-1]):
        alone, among = predictor.sample([label], 15), of(together, label)
        assert list(alone.obs["source_cell"]) == list(among.obs["source_cell"])
        np.testing.assert_allclose(alone.X, among.X, atol=1e-4)


def test_spread_is_the_standard_deviation_over_the_cells(predictor, labels):
    cells = predictor.sample([*labels[:2], "control"], 17)
    assert list(cells.varm["spread"].columns) == [*labels[:2], "control"]
    for label in [*labels[:2], "control"]:
        np.testing.assert_allclose(cells.varm["spread"][label], of(cells, label).X.std(axis=0), atol=1e-5)


def test_more_cells_than_controls_are_drawn_with_repetition(predictor):
    n = len(predictor.controls) + 50
    cells = predictor.sample(["control"], n)
    assert cells.n_obs == n and cells.obs_names.is_unique and not cells.obs["source_cell"].is_unique


def test_what_comes_back_says_what_it_is(predictor, prepared, labels):
    cells = predictor.sample(labels[:1], 12)
    assert list(cells.var_names) == list(prepared.var_names) and cells.X.dtype == np.float32
    assert cells.obsm["X_latent"].shape == (12, predictor.settings.gcae.latent)
    about = cells.uns["scbig"]
    assert about["kind"] == "cells" and about["predicted"] is True
    assert about["target_sum"] == prepared.uns["scbig"]["target_sum"]
    assert cells.X.min() >= 0.0


@pytest.mark.parametrize(
    ("conditions", "options", "says"),
    [
        (["NOSUCH"], {}, "no embedding for NOSUCH in any source (identity, noisy, semantic)"),
        (["control", "NOSUCH+OTHER"], {}, "no embedding for NOSUCH, OTHER in any source"),
        ([], {}, "no conditions to sample"),
        (["control"], {"n_cells": 0}, "--n-cells 0"),
        (["control"], {"n_cells": -3}, "--n-cells -3"),
        (["control", "control"], {}, "control is named twice"),
        (["control"], {"guidance": 2.0}, "guidance 2.0 needs a run trained with --config.condition.null_dropout"),
        (["control"], {"context": "K562"}, "K562"),
    ],
)
def test_a_mistake_is_named(predictor, conditions, options, says):
    with pytest.raises(InputError) as told:
        predictor.sample(conditions, **{"n_cells": 5} | options)
    assert says in str(told.value) and "\n" not in str(told.value)


def test_two_spellings_of_one_condition_are_the_same_twice(predictor, labels):
    with pytest.raises(InputError, match="is named twice"):
        predictor.sample([f"{labels[0]}+{labels[1]}", f"{labels[1]}+{labels[0]}"], 5)


def test_a_run_of_another_solver_differs_but_little(predictor, labels):
    heun, fine = predictor.sample(labels[:1], 20), predictor.sample(labels[:1], 20, steps=40, solver="rk4")
    scale = np.abs(fine.obsm["X_latent"]).max()
    assert 0 < np.abs(heun.obsm["X_latent"] - fine.obsm["X_latent"]).max() < 0.05 * scale


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        predict.load(tmp_path)


def test_files_that_changed_since_are_refused(copy_of_run):
    text = (copy_of_run / "modules.csv").read_text().splitlines()
    (copy_of_run / "modules.csv").write_text("\n".join([text[0], *text[:0:-1]]) + "\n")
    with pytest.raises(InputError, match="modules.csv changed since stage cluster wrote it"):
        predict.load(copy_of_run)


def test_an_ensemble_takes_cells_from_each_run_and_tells_how_they_differ(predictor, labels):
    other = replace(predictor, z0=predictor.z0 + 0.1)
    ensemble = predict.Ensemble((predictor, other))
    cells = ensemble.sample(labels[:2], 11)
    assert cells.n_obs == 22 and cells.obs_names.is_unique
    assert cells.obs["run"].value_counts().sort_index().tolist() == [12, 10]  # 6 + 5 of each condition
    parts = [member.sample(labels[:2], 6) for member in (predictor, other)]
    for label in labels[:2]:
        means = np.stack([of(part, label).X.mean(axis=0) for part in parts])
        np.testing.assert_allclose(cells.varm["seed_spread"][label], means.std(axis=0, ddof=1), atol=1e-5)
        np.testing.assert_allclose(cells.varm["spread"][label], of(cells, label).X.std(axis=0), atol=1e-5)
    fewer = replace(other, var=other.var.rename(index={other.var.index[0]: "ANOTHER"}))
    with pytest.raises(InputError, match="same genes"):
        predict.Ensemble((predictor, fewer)).sample(labels[:2], 4)
