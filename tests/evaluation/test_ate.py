"""Batch-aware effects against loops and known answers."""

import numpy as np
import pytest
import scipy.sparse as sp

from scbig.errors import InputError
from scbig.evaluation import ate
from scbig.evaluation.ate import batch_effects


def screen(seed=0, n=400, n_groups=5, n_batches=4, genes=6):
    rng = np.random.default_rng(seed)
    group, batch = rng.integers(-1, n_groups, n), rng.integers(0, n_batches, n)
    control = rng.random(n) < 0.3
    # One condition is missing in a batch, one batch has no control.
    group[(group == 1) & (batch == 0)] = 2
    control[batch == 3] = False
    x = rng.normal(size=(n, genes)) + batch[:, None] + group[:, None] * ~control[:, None]
    return x, group, batch, control


def looped(x, group, n_groups, batch, control, per_batch):
    out = np.full((n_groups, x.shape[1]), np.nan)
    codes = sorted(set(batch))
    base = {b: x[control & (batch == b)].mean(axis=0) for b in codes if (control & (batch == b)).any()}
    everywhere = np.mean(list(base.values()), axis=0)
    for g in range(n_groups):
        differences = []
        for b in codes:
            own = x[(group == g) & ~control & (batch == b)]
            if len(own) and (not per_batch or b in base):
                differences.append(own.mean(axis=0) - (base[b] if per_batch else everywhere))
        if differences:
            out[g] = np.mean(differences, axis=0)
    return out


@pytest.mark.parametrize("per_batch", [True, False])
@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csr_array, lambda x: x.astype(np.float32)])
def test_matches_loops(monkeypatch, per_batch, form):
    x, group, batch, control = screen()
    expected = looped(x, group, 6, batch, control, per_batch)
    monkeypatch.setattr(ate, "_BLOCK", 37)
    result = batch_effects(form(x), group, 6, 10 * batch, control, per_batch)
    np.testing.assert_allclose(result, expected, atol=1e-6)
    assert np.isnan(result[5]).all() and not np.isnan(result[:5]).any()


def test_confounded_batches():
    # Two batches, the second brighter by 10. The condition adds 1, and most of its cells are in the second batch.
    batch = np.array([0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    control = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
    x = (10.0 * batch + ~control)[:, None]
    group = np.where(control, -1, 0)
    plain = x[~control].mean() - x[control].mean()
    assert plain == pytest.approx(1 + 7.5 - 10 / 3)
    assert batch_effects(x, group, 1, batch, control)[0, 0] == pytest.approx(1.0)
    assert batch_effects(x, group, 1, batch, control, per_batch=False)[0, 0] == pytest.approx(1.0)
    # With cells in the bright batch only, global controls (mean 5) cannot help; those of the batch do.
    group[6] = -1
    assert batch_effects(x, group, 1, batch, control)[0, 0] == pytest.approx(1.0)
    assert batch_effects(x, group, 1, batch, control, per_batch=False)[0, 0] == pytest.approx(6.0)


@pytest.mark.parametrize("per_batch", [True, False])
def test_equal_batches_give_the_plain_difference(per_batch):
    rng = np.random.default_rng(1)
    batch, group = np.repeat([0, 1, 2], 20), np.tile(np.repeat([0, 1], 10), 3)
    control = group == 0
    x = rng.normal(size=(60, 4)) + 3.0 * batch[:, None]
    result = batch_effects(x, group, 2, batch, control, per_batch)
    np.testing.assert_allclose(result[1], x[~control].mean(axis=0) - x[control].mean(axis=0))
    assert np.isnan(result[0]).all()  # its cells are controls


def test_no_controls_beside_a_condition():
    x = np.arange(6.0)[:, None]
    batch, control = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 0, 0, 0], bool)
    group = np.array([-1, -1, 0, 1, 1, 1])
    np.testing.assert_allclose(batch_effects(x, group, 2, batch, control), [[1.5], [np.nan]])
    np.testing.assert_allclose(batch_effects(x, group, 2, batch, control, False), [[1.5], [3.5]])


def test_refusals():
    x, group, batch, control = screen()
    with pytest.raises(InputError, match="2 cells have no batch"):
        batch_effects(x, group, 5, np.where(np.arange(400) < 2, -1, batch), control)
    with pytest.raises(InputError, match="no control cells"):
        batch_effects(x, group, 5, batch, np.zeros(400, bool))
