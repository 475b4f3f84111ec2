"""Sampling where the anchor says: means that are the anchor's, gates, and what must not matter."""

from dataclasses import replace

import numpy as np
import pytest

from scbig import anchor, predict
from scbig.anchor import Gate
from scbig.data.conditions import genes_of
from scbig.predict import tiles

OPEN = {kind: Gate(1.0, 1.0) for kind in anchor.KINDS}
CLOSED = dict.fromkeys(anchor.KINDS, anchor.CLOSED)


@pytest.fixture(scope="module")
def predictor(tiny_run):
    return predict.load(tiny_run)


def gated(predictor, gates, move="thin", clip=True):
    settings = predictor.settings.copy_and_resolve_references()
    settings.sample.clip = clip
    return replace(predictor, anchor=replace(predictor.anchor, gates=gates, move=move), settings=settings)


@pytest.fixture(scope="module")
def asked(predictor):
    """A measured single, a measured and an unmeasured pair."""
    singles = sorted(c for c in predictor.anchor.data.conditions if len(genes_of(c)) == 1)
    pairs = sorted(c for c in predictor.anchor.data.conditions if len(genes_of(c)) == 2)
    new = next(
        f"{a}+{b}" for a in singles for b in singles if a < b and f"{a}+{b}" not in predictor.anchor.data.conditions
    )
    return [singles[0], pairs[0], new]


def means(cells):
    return cells.to_df().groupby(cells.obs["condition"].astype(str), sort=False).mean()


@pytest.mark.parametrize(("move", "clip"), [("thin", True), ("scale", True), ("shift", False)])
def test_with_closed_gates_the_mean_is_exactly_the_anchors(predictor, asked, move, clip):
    found = means(gated(predictor, CLOSED, move, clip).sample(asked, 120))
    control = predictor.x0.mean(axis=0)
    context = predictor.vocabulary.contexts[0]
    for condition in asked:
        wanted = np.asarray(control).ravel() + predictor.anchor.effect(condition, context)
        wanted = np.maximum(wanted, 0.0) if clip else wanted
        gap = np.abs(found.loc[condition] - wanted)
        # A gene that almost none of these cells has is not blown up in the few that do.
        assert gap[(wanted > 0.1) | (move == "shift")].max() < 2e-4 and gap.max() < 0.03


def test_clipped_cells_are_not_negative_and_keep_their_mean_under_open_gates(predictor, asked):
    free = means(gated(predictor, OPEN, clip=False).sample(asked, 200))
    cells = gated(predictor, OPEN, clip=True).sample(asked, 200)
    assert cells.X.min() >= 0.0
    gap = np.abs(means(cells).to_numpy() - np.maximum(free.to_numpy(), 0.0))
    # Clipping alone would raise every rare gene; what is left is that the factor was found on other cells.
    raised = np.maximum(gated(predictor, OPEN, clip=False).sample(asked, 200).X, 0.0)
    naive = np.abs(raised.reshape(3, 200, -1).mean(axis=1) - np.maximum(free.to_numpy(), 0.0))
    assert gap.mean() < 0.2 * naive.mean()


def test_the_mean_gate_moves_the_mean_and_the_shape_gate_does_not(predictor, asked):
    def at(mean, shape):
        gates = {kind: Gate(mean, shape) for kind in anchor.KINDS}
        return gated(predictor, gates, clip=False).sample(asked, 128)

    closed, by_mean, by_shape, both = (at(*each) for each in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.0)))
    np.testing.assert_allclose(means(by_shape), means(closed), atol=1e-4)
    added = means(by_mean) - means(closed)
    assert np.abs(added.to_numpy()).max() > 1e-3
    np.testing.assert_allclose(means(both) - means(closed), 0.5 * added, atol=1e-4)
    centred = [c.X.reshape(3, 128, -1) - c.X.reshape(3, 128, -1).mean(axis=1, keepdims=True) for c in (closed, by_mean)]
    np.testing.assert_allclose(*centred, atol=1e-4)
    assert np.abs(by_shape.X - closed.X).max() > 1e-3


def test_control_is_left_alone(predictor):
    cells = gated(predictor, OPEN).sample(["control"], 120)
    start = predictor.x0[predictor.controls.index.get_indexer(cells.obs["source_cell"])].toarray()
    # A hundred cells are brought to the mean of all controls.
    pool = np.asarray(predictor.x0.mean(axis=0)).ravel()
    np.testing.assert_allclose(cells.X.mean(axis=0), pool, atol=2e-4)
    few = gated(predictor, OPEN).sample(["control"], 20)
    start = predictor.x0[predictor.controls.index.get_indexer(few.obs["source_cell"])].toarray()
    np.testing.assert_allclose(few.X, start, atol=1e-5)


def test_cells_do_not_depend_on_what_else_is_sampled_nor_on_tiles(predictor, asked, monkeypatch):
    opened = gated(predictor, OPEN)
    together = opened.sample(asked, 70)
    alone = opened.sample(asked[1:2], 70)
    np.testing.assert_allclose(together.X[70:140], alone.X, atol=1e-4)
    monkeypatch.setattr(tiles, "_CELLS", 8)
    np.testing.assert_allclose(opened.sample(asked, 70).X, together.X, atol=1e-4)


def test_what_a_prediction_rests_on_travels_with_it(predictor, asked, tmp_path):
    opened = gated(predictor, {"combination": Gate(0.25, 0.5)})
    opened.write(tmp_path / "cells.h5ad", asked, 10)
    import anndata as ad

    table = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scbig"]["anchor"]
    assert list(table["condition"]) == asked
    assert list(table["kind"]) == ["measured", "measured", "combination"]
    assert table["shape_gate"].tolist() == [0.0, 0.0, 0.5] and table["mean_gate"].tolist() == [0.0, 0.0, 0.25]
    assert table["basis"].iloc[0] == "measured" and np.isfinite(table["skill"].iloc[2])


def test_a_run_without_anchor_is_the_plain_model(tiny_settings, tiny_run, tmp_path):
    import shutil

    from scbig import stages

    folder = shutil.copytree(tiny_run, tmp_path / "plain")
    settings = tiny_settings()
    settings.anchor.method = ""
    stages.execute(folder, settings, ("train",), force=True)
    plain = predict.load(folder)
    assert plain.anchor is None
    cells = plain.sample(["control"], 20)
    assert "anchor" not in cells.uns["scbig"]
    np.testing.assert_allclose(
        cells.obsm["X_latent"], plain.z0[plain.controls.index.get_indexer(cells.obs["source_cell"])], atol=1e-5
    )
