"""The matching mean, the shuffled control, and predictions as cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig import baselines
from scbig.baselines import TrainingData
from scbig.data.splits import Split
from scbig.errors import InputError

GENES = tuple(f"g{i}" for i in range(20))


def data_of(effects, contexts=None) -> TrainingData:
    return TrainingData(
        genes=GENES,
        conditions=tuple(effects),
        contexts=tuple(contexts or ("all",) * len(effects)),
        effects=np.stack(list(effects.values())).astype(np.float32),
        n_cells=np.ones(len(effects), np.int64),
    )


@pytest.fixture
def effects():
    rng = np.random.default_rng(0)
    return {c: rng.normal(size=20) for c in ("A", "A+X", "A+Y", "B", "C", "D+E")}


def test_matching_mean_weighs_each_gene_alike(effects):
    model = baselines.fit("matching_mean", data_of(effects))
    of_a = (effects["A"] + effects["A+X"] + effects["A+Y"]) / 3
    x = model.predict(["A+B", "A+Z", "E", "control"])
    np.testing.assert_allclose(x[0], (of_a + effects["B"]) / 2, atol=1e-6)
    np.testing.assert_allclose(x[1], of_a, atol=1e-6)
    np.testing.assert_allclose(x[2], effects["D+E"], atol=1e-6)
    assert not x[3].any()
    (skipped,) = model.skipped(["A+B", "Q+Z"])
    assert skipped.reason == "no training condition perturbs Q, Z"


def test_shuffled_takes_another_condition_of_the_same_size(effects):
    rows = {c: e.astype(np.float32) for c, e in effects.items()}
    model = baselines.fit("shuffled", data_of(effects))
    for condition in ("A", "B", "C", "new", "A+X", "A+B"):
        x = model.predict([condition])[0]
        (source,) = (c for c, e in rows.items() if np.array_equal(e, x))
        assert source != condition and source.count("+") == condition.count("+")
    three = model.predict(["A+B+C"])[0]
    assert any(np.array_equal(e, three) for e in rows.values())
    assert not model.predict(["control"]).any()


def test_shuffled_hangs_on_names_and_seed_only(effects):
    asked = [f"n{i}" for i in range(12)]
    backwards = data_of(dict(reversed(effects.items())))
    x = baselines.fit("shuffled", data_of(effects)).predict(asked)
    np.testing.assert_array_equal(baselines.fit("shuffled", backwards).predict(asked[::-1])[::-1], x)
    assert not np.array_equal(baselines.fit("shuffled", data_of(effects), seed=1).predict(asked), x)
    (skipped,) = baselines.fit("shuffled", data_of({"A": effects["A"]})).skipped(["A"])
    assert "no other" in skipped.reason


@pytest.fixture
def screen():
    """Two contexts; perturbed cells spread wider than controls."""
    rng = np.random.default_rng(1)
    keys = [(c, k) for k in "kl" for c in ("control", "A", "B")]
    obs = pd.DataFrame([key for key in keys for _ in range(40)], columns=["condition", "context"])
    obs.index = [f"cell{i}" for i in range(len(obs))]
    wide = np.where(obs["condition"] == "control", 0.1, 1.0)[:, None]
    level = pd.factorize(obs["condition"] + obs["context"])[0][:, None]
    x = level + wide * rng.normal(size=(len(obs), 20))
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=list(GENES)))


def test_resampled_cells_have_the_predicted_mean_and_the_spread_of_perturbed_cells(screen):
    rows = pd.DataFrame([(c, "train", "") for c in "AB"], columns=["condition", "part", "stratum"])
    split = Split("s", "file", 0, rows)
    data = baselines.training_data(screen, split)
    model = baselines.fit("additive", data)
    is_control = (screen.obs["condition"] == "control").to_numpy()
    controls, perturbed = screen[is_control], screen[~is_control].copy()
    given = {"how": "resampled", "perturbed_cells": perturbed}
    cells, skipped = baselines.as_cells(model, ["A+B", "A+Z"], controls, 1000, 0, ["l", "l"], **given)
    assert [s.condition for s in skipped] == ["A+Z"]
    assert cells.n_obs == 80 and cells.obs["source_cell"].is_unique
    assert set(perturbed[cells.obs["source_cell"].to_numpy()].obs["context"]) == {"l"}
    expected = data.control_mean["l"] + model.predict(["A+B"], ["l"])[0]
    # All cells of the context were drawn: their residuals cancel.
    np.testing.assert_allclose(cells.X.mean(axis=0), expected, atol=1e-4)
    assert 0.8 < cells.X.std(axis=0).mean() < 1.2
    again, _ = baselines.as_cells(model, ["A+B"], controls, 30, 0, ["l"], **given)
    np.testing.assert_array_equal(again.X, baselines.as_cells(model, ["A+B"], controls, 30, 0, ["l"], **given)[0].X)
    assert again.n_obs == 30


def test_resampling_refuses_what_it_cannot_do(screen):
    model = baselines.fit("control", data_of({"A": np.zeros(20)}, ["k"]))
    controls = screen[(screen.obs["condition"] == "control").to_numpy()]
    for given in ({"how": "resampled"}, {"how": "magic"}, {"perturbed_cells": screen}):
        with pytest.raises(InputError, match="resampled"):
            baselines.as_cells(model, ["A"], controls, 5, 0, **given)
    with pytest.raises(InputError, match="perturbed cells have other genes"):
        baselines.as_cells(model, ["A"], controls, 5, 0, how="resampled", perturbed_cells=screen[:, ::-1])
    bare = screen[(screen.obs["context"] == "l").to_numpy()]
    with pytest.raises(InputError, match="context k"):
        baselines.as_cells(model, ["A"], controls, 5, 0, how="resampled", perturbed_cells=bare)
