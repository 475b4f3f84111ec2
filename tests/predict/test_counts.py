"""Populations of counts from a real run: whole counts at each control's depth, the same however they are sampled."""

import shutil
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest

from scbig import config, predict, stages
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError
from scbig.predict import tiles
from scbig.predict.counts import Counting
from scbig.run import Run
from scbig.stages.train import pretrain
from scbig.training.vocabulary import Group


def before(tiny_run, folder):
    """A copy of the finished run without its autoencoder, and its settings with counts."""
    left = shutil.ignore_patterns(
        "gcae", "latents.zarr", "flow", "predictions", "evaluation", "metrics.jsonl", "tensorboard"
    )
    shutil.copytree(tiny_run, folder, ignore=left)
    Run(folder).forget("pretrain")
    return config.override(config.read_json(folder / "config.json"), ["gcae.likelihood=negative_binomial"])


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("counts") / "run"
    # The smallest there is: what is tried here does not depend on the network.
    small = ["gcae.encoder=mlp", "gcae.decoder=mlp", "flow.lambda_corr=0.0", "flow.lambda_path=0.0", "flow.steps=50"]
    settings = config.override(before(tiny_run, folder), ["anchor.method=", *small])
    return stages.execute(folder, settings, ("prepare", "cluster", "pretrain", "train")).folder


@pytest.fixture(scope="module")
def predictor(run):
    return predict.load(run)


@pytest.fixture(scope="module")
def prepared(run):
    return ad.read_h5ad(run / "prepared.h5ad")


@pytest.fixture(scope="module")
def labels(prepared):
    return sorted(set(prepared.obs["condition"].astype(str)) - {CONTROL}, key=lambda c: (len(genes_of(c)), c))


def depths(prepared, cells):
    size = prepared.obs.loc[cells.obs["source_cell"], "size_factor"].to_numpy()
    return size / prepared.uns["scbig"]["target_sum"]


def test_cells_hold_whole_counts_at_the_depth_of_their_control(predictor, prepared, labels):
    cells, scale = predictor.sample([*labels[:2], "control"], 40), None
    scale = depths(prepared, cells)[:, None]
    counts = np.expm1(cells.X.astype(float)) * scale
    assert counts.max() > 5 and np.abs(counts - np.round(counts)).max() < 1e-3
    other = np.expm1(cells.X.astype(float)) * np.roll(scale, 1, axis=0)
    assert np.abs(other - np.round(other)).max() > 0.2


def test_the_autoencoder_knows_the_depth_of_the_training_cells(predictor, prepared):
    size = prepared.obs["size_factor"].to_numpy() / prepared.uns["scbig"]["target_sum"]
    assert float(predictor.auto.counts.depth) == pytest.approx(np.median(size), rel=0.1)
    rates = prepared.layers["counts"].sum(axis=0) / size.sum()
    found = np.exp(np.asarray(predictor.auto.counts.log_rate))
    assert np.corrcoef(np.log(np.ravel(rates) + 1e-3), np.log(found + 1e-3))[0, 1] > 0.95
    places = prepared.obs_names.get_indexer(predictor.controls.index)
    np.testing.assert_allclose(predictor.controls["depth"], size[places], rtol=1e-5)


def test_sampled_controls_look_like_controls(predictor, prepared):
    real = prepared[predictor.controls.index].X.toarray()
    cells = predictor.sample(["control"], len(real)).X
    # Three epochs: what is not learned yet counts as dispersion, so that the variance is still too large.
    assert np.corrcoef(cells.mean(axis=0), real.mean(axis=0))[0, 1] > 0.8
    assert 0.6 < (cells == 0).mean() / (real == 0).mean() < 1.6


def test_draws_depend_on_seed_condition_and_cell_alone(predictor, labels, monkeypatch):
    names, n_cells = labels[:3], 45
    whole = predictor.sample(names, n_cells, seed=5)
    np.testing.assert_array_equal(whole.X, predictor.sample(names, n_cells, seed=5).X)
    assert not np.array_equal(whole.X, predictor.sample(names, n_cells, seed=6).X)
    # Rates of another company differ in the last bits, by which a rare count may fall the other way.
    alone = predictor.sample(names[2:], n_cells, seed=5)
    assert (alone.X != whole.X[2 * n_cells :]).mean() < 1e-3
    monkeypatch.setattr(tiles, "_shape", lambda: (3, 1))
    tiles._tile.clear_cache()
    assert (predictor.sample(names, n_cells, seed=5).X != whole.X).mean() < 1e-3
    tiles._tile.clear_cache()


def test_depths_that_stand_at_the_wrong_cells_change_what_is_drawn(predictor, labels):
    turned = replace(predictor, controls=predictor.controls.assign(depth=predictor.controls["depth"].to_numpy()[::-1]))
    assert (turned.sample(labels[:1], 30).X != predictor.sample(labels[:1], 30).X).mean() > 0.1


def test_a_deeper_control_gives_more_counts(predictor):
    groups = [Group("A", "x", 0.0), Group("B", "x", 0.0)]
    depth = np.array([0.5, 2.0], np.float32)
    n_genes = len(predictor.var)
    rates = np.full((400, n_genes), 1.0, np.float32)
    source, condition, number = np.arange(400) % 2, np.zeros(400, int), np.arange(400)
    counting = Counting(predictor.auto, depth, groups, 0)
    x = counting.draw(rates, source, condition, number)
    counts = np.expm1(x) * depth[source][:, None]
    assert counts[1::2].mean() / counts[::2].mean() == pytest.approx(4.0, rel=0.1)
    assert not np.array_equal(x, counting.draw(rates, source, condition + 1, number))
    some = np.arange(400)[::-7]
    np.testing.assert_array_equal(counting.draw(rates[some], source[some], condition[some], number[some]), x[some])


def test_a_screen_without_counts_and_an_unknown_likelihood_are_refused(tiny_run, tmp_path):
    settings = before(tiny_run, tmp_path / "run")
    screen = ad.read_h5ad(tmp_path / "run" / "prepared.h5ad")
    screen.uns["scbig"]["normalization"] = "given"
    screen.write_h5ad(tmp_path / "run" / "prepared.h5ad")
    run = Run(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"needs counts, and the screen was read as log-normalised.*likelihood=gaussian"
    ):
        pretrain(run, settings, {})
    settings.gcae.likelihood = "poisson"
    with pytest.raises(InputError, match=r"likelihood=poisson: there are gaussian, negative_binomial"):
        pretrain(run, settings, {})
