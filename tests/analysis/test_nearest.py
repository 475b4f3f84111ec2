"""Nearest known perturbations: a state finds itself, what all share is taken out, and doubt is told."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scbig.analysis.nearest import effect_of_cells, nearest
from scbig.errors import InputError

GENES = [f"G{i}" for i in range(200)]


def known(n=6, shared=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(rng.normal(size=(n, 200)) + shared, index=[f"P{i}" for i in range(n)], columns=GENES)


@pytest.mark.parametrize("measure", ["cosine", "correlation"])
@pytest.mark.parametrize("centre", ["mean", "control"])
def test_a_state_finds_itself_in_spite_of_noise(measure, centre):
    table = known()
    noisy = table.loc[["P3"]] + 0.5 * np.random.default_rng(1).normal(size=(1, 200))
    noisy.index = ["mine"]
    first = nearest(noisy, table, measure=measure, centre=centre).iloc[0]
    assert first["neighbour"] == "P3"
    assert first["low"] < first["similarity"] < first["high"]
    assert first["stays_first"] == 1.0
    assert first["margin_low"] > 0


def test_similarities_are_cosines_and_correlations_of_genes_that_count():
    table, state = known().rename(index={"P0": "G7"}), known(1, seed=5).rename(index={"P0": "G1+G2"})
    left = [g for g in GENES if g not in ("G1", "G2", "G7")]
    a, b = state.loc["G1+G2", left].to_numpy(), table.loc["G7", left].to_numpy()
    cosine = nearest(state, table, centre="control").set_index("neighbour")["similarity"]["G7"]
    assert cosine == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    found = nearest(state, table, centre="control", measure="correlation").set_index("neighbour")["similarity"]
    assert found["G7"] == pytest.approx(np.corrcoef(a, b)[0, 1])


def test_what_all_share_makes_all_alike_unless_taken_out():
    table = known(shared=5.0)
    state = known(1, shared=5.0, seed=9)
    state.index = ["new"]
    assert nearest(state, table, centre="control")["similarity"].min() > 0.9
    assert nearest(state, table, centre="mean")["similarity"].abs().max() < 0.5


def test_twins_cannot_be_told_apart():
    table = known()
    table.loc["P1"] = table.loc["P0"] + 0.2 * np.random.default_rng(2).normal(size=200)
    state = table.loc[["P0"]] + 0.6 * np.random.default_rng(3).normal(size=200)
    state.index = ["between"]
    first = nearest(state, table).iloc[0]
    assert first["neighbour"] in ("P0", "P1")
    assert first["margin_low"] < 0.05
    assert first["stays_first"] < 1.0


def test_a_condition_is_its_own_neighbour_only_when_asked():
    table = known()
    assert "P2" not in set(nearest(table.loc[["P2"]], table)["neighbour"])
    assert nearest(table.loc[["P2"]], table, own=True).iloc[0]["neighbour"] == "P2"


def test_groups_are_drawn_whole_and_widen_the_interval():
    rng = np.random.default_rng(4)
    factor, other = np.repeat(rng.normal(size=10), 20), np.repeat(rng.normal(size=10), 20)
    table = pd.DataFrame([factor + other, *rng.normal(size=(3, 200))], index=list("ABCD"), columns=GENES)
    state = pd.DataFrame([factor], index=["s"], columns=GENES)
    alone = nearest(state, table, centre="control").iloc[0]
    together = nearest(state, table, centre="control", groups=pd.Series(np.arange(200) // 20, index=GENES)).iloc[0]
    assert together["high"] - together["low"] > 2 * (alone["high"] - alone["low"])


def test_the_order_of_genes_does_not_matter():
    table, state = known(), known(1, seed=7).rename(index={"P0": "s"})
    shuffled = list(np.random.default_rng(0).permutation(GENES))
    pd.testing.assert_frame_equal(nearest(state, table), nearest(state, table[shuffled]))


def test_other_genes_and_unknown_measures_are_refused():
    with pytest.raises(InputError, match="G0"):
        nearest(known().drop(columns="G0"), known())
    with pytest.raises(InputError, match="euclid"):
        nearest(known(), known(), measure="euclid")
    with pytest.raises(InputError, match="1 known"):
        nearest(known(), known(1))


def test_cells_of_ones_own_are_taken_to_their_own_controls():
    x = np.array([[1.0, 2.0], [3.0, 2.0], [1.0, 0.0], [5.0, 5.0]], np.float32)
    obs = pd.DataFrame({"condition": ["sick", "sick", "control", "other"]}, index=list("abcd"))
    cells = ad.AnnData(x, obs=obs, var=pd.DataFrame(index=["B", "A"]))
    found = effect_of_cells(cells, np.zeros(2), ["A", "B"])
    assert found.loc["sick"].tolist() == [2.0, 1.0]
    bare = effect_of_cells(cells[:2], np.array([1.0, 1.0]), ["A", "B"])
    assert bare.loc["sick"].tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match="lack 1 genes of the run: C"):
        effect_of_cells(cells, np.zeros(2), ["A", "C"])
