"""Cells moved by an effect."""

import numpy as np
import pytest

from scbig import anchor
from scbig.errors import InputError


@pytest.fixture
def cells():
    random = np.random.default_rng(0)
    x = np.log1p(random.poisson(random.gamma(1.0, 1.0, 30), (200, 30))).astype(np.float32)
    x[:, 0] = 0.0  # not expressed
    return x


@pytest.mark.parametrize("how", ["scale", "shift"])
def test_the_mean_moves_by_the_effect(cells, how):
    effect = np.random.default_rng(1).normal(size=30).astype(np.float32) * 0.3
    effect[0] = 0.4
    effect = np.maximum(effect, -cells.mean(axis=0))
    moved = anchor.move(cells, effect, how)
    np.testing.assert_allclose(moved.mean(axis=0) - cells.mean(axis=0), effect, atol=1e-5)


def test_thinning_moves_the_mean_on_average_and_takes_the_gene_from_some_cells(cells):
    many = np.tile(cells, (100, 1))
    effect = np.linspace(-0.8, 0.5, 30).astype(np.float32) * cells.mean(axis=0)
    moved = anchor.move(many, effect)
    np.testing.assert_allclose(moved.mean(axis=0) - many.mean(axis=0), effect, atol=0.02)
    falls = effect < 0
    kept = (moved > 0).mean(axis=0)[falls] / np.maximum((many > 0).mean(axis=0)[falls], 1e-9)
    wanted = np.sqrt(1 + np.linspace(-0.8, 0.5, 30))[falls]
    expressed = (many > 0).any(axis=0)[falls]
    np.testing.assert_allclose(kept[expressed], wanted[expressed], atol=0.03)
    assert (moved >= 0).all()


def test_a_draw_hangs_on_its_name_alone(cells):
    kept = np.full(cells.shape, 0.5, np.float32)
    names = [[3, i] for i in range(len(cells))]
    together = anchor.thinned(cells, kept, names)
    np.testing.assert_array_equal(anchor.thinned(cells[7:9], kept[7:9], names[7:9]), together[7:9])
    assert (anchor.thinned(cells, kept, [[4, i] for i in range(len(cells))]) != together).any()


@pytest.mark.parametrize("how", ["thin", "scale"])
def test_zeros_stay_zeros_where_a_gene_falls_and_nothing_becomes_negative(cells, how):
    moved = anchor.move(cells, -0.5 * cells.mean(axis=0), how)
    assert (moved[cells == 0] == 0).all() and (moved >= 0).all()
    below = anchor.move(cells, -2 * cells.mean(axis=0), how)
    assert (below == 0).all()


@pytest.mark.parametrize("how", ["thin", "scale"])
def test_a_rare_gene_is_not_blown_up(how):
    x = np.zeros((100, 1), np.float32)
    x[0] = 1.0
    moved = anchor.move(x, np.array([1.0], np.float32), how)
    assert moved.max() <= 3.0 and moved.mean() == pytest.approx(1.01, abs=1e-5)


def test_shifting_keeps_every_variance(cells):
    moved = anchor.move(cells, np.linspace(-1, 1, 30, dtype=np.float32), "shift")
    np.testing.assert_allclose(moved.var(axis=0), cells.var(axis=0), atol=1e-5)


def test_another_way_is_refused(cells):
    with pytest.raises(InputError, match="thin, scale or shift, not 'jump'"):
        anchor.move(cells, np.zeros(30, np.float32), "jump")
