"""What the stages that train take from the screen without reading all of it."""

from importlib import import_module

import numpy as np
import pytest
import scipy.sparse as sp

from scbig.data.store import Rows
from scbig.evaluation import Space

train = import_module("scbig.stages.train")  # the package has a function of this name


@pytest.fixture(scope="module")
def x():
    return sp.random(400, 30, 0.4, "csr", np.float32, random_state=np.random.default_rng(0))


@pytest.mark.parametrize("budget", [1 << 26, 0])
def test_activities_are_kept_for_some_cells_of_every_group(x, budget, monkeypatch):
    monkeypatch.setattr(train, "_ACTIVITIES", budget)
    random = np.random.default_rng(0)
    pathways = random.random((5, 30)).astype(np.float32)
    cells = random.permutation(400)
    members = [np.sort(part) for part in np.split(cells[:300], [20, 70])]  # 20, 50 and 230 cells; 100 in no group
    activity, row = train._activity(Rows.of(x), pathways, members, np.random.default_rng(1))
    whole = x @ pathways.T
    # The cells that have a row of their own: all, or 32 of a group where the budget allows no more.
    sizes = [min(len(each), 32 if budget == 0 else 512) for each in members]
    assert activity.shape == (sum(sizes), 5) and activity.dtype == np.float32
    for each, size in zip(members, sizes, strict=True):
        kept = np.unique(row[each])
        assert len(kept) == size
        # Every stand-in is a cell of the same group.
        own = {tuple(values) for values in np.round(whole[each], 4)}
        assert {tuple(values) for values in np.round(activity[kept], 4)} <= own
        if size == len(each):
            np.testing.assert_allclose(activity[row[each]], whole[each], rtol=1e-6)


def test_the_space_is_the_same_from_disk(x):
    which = np.arange(400) % 3 > 0
    one, other = Space.fit(x[which], 4), Space.fit(Rows.of(x).chosen(which), 4)
    np.testing.assert_array_equal(one.components, other.components)
    np.testing.assert_array_equal(one.mean, other.mean)
