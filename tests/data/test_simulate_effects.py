import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig.data.simulate_effects import noiseless_effects, simulate_from_effects
from scbig.errors import InputError


def table(n_conditions=6, n_genes=50, size=0.5, seed=0):
    rng = np.random.default_rng(seed)
    values = size * rng.normal(size=(n_conditions, n_genes)) * (rng.random((n_conditions, n_genes)) < 0.5)
    names = [f"A{i}" for i in range(n_conditions - 1)] + ["A0+A1"]
    genes = [f"g{i}" for i in range(n_genes)]
    effects = ad.AnnData(
        values.astype(np.float32),
        obs=pd.DataFrame({"condition": names}, index=names),
        var=pd.DataFrame(index=genes),
    )
    effects.uns["source"] = "a table made for a test"
    return effects


def pooled_effects(adata, names):
    """Differences of log1p(CPM of pooled cells)."""
    groups = [(adata.obs["condition"] == c).to_numpy() for c in ("control", *names)]
    sums = np.array([np.asarray(adata.X[g].sum(0)).ravel() / adata.obs["n_umis"][g].sum() for g in groups])
    levels = np.log1p(1e6 * sums)
    return levels[1:] - levels[0]


def mean_log_effects(adata, names):
    size = adata.obs["n_umis"].to_numpy()
    values = np.log1p(adata.X.toarray() / size[:, None] * np.median(size))
    means = np.array([values[(adata.obs["condition"] == c).to_numpy()].mean(0) for c in ("control", *names)])
    return means[1:] - means[0]


def agreement(got, wanted):
    """Pearson and slope over all entries."""
    return np.corrcoef(got.ravel(), wanted.ravel())[0, 1], (got * wanted).sum() / (wanted**2).sum()


@pytest.fixture(scope="module")
def pooled():
    effects = table()
    return effects, simulate_from_effects(effects, 30_000, 1, depth=20_000.0)


def test_pooled_cells_show_the_table(pooled):
    effects, adata = pooled
    pearson, slope = agreement(pooled_effects(adata, effects.obs["condition"]), effects.X)
    assert pearson > 0.97 and slope == pytest.approx(1, abs=0.03)


def test_noiseless_effects_are_what_cells_converge_to(pooled):
    effects, adata = pooled
    truth = noiseless_effects(adata)
    assert list(truth.var_names) == list(adata.var_names)
    assert list(truth.obs["condition"]) == list(effects.obs["condition"])
    assert truth.uns["scbig"]["kind"] == "effects" and truth.uns["simulated_cells"] is True
    pearson, slope = agreement(mean_log_effects(adata, truth.obs["condition"]), truth.X)
    assert pearson > 0.97 and slope == pytest.approx(1, abs=0.03)


def test_mean_log_scale_puts_the_table_itself_into_cells():
    effects = table(size=0.25)
    adata = simulate_from_effects(effects, 30_000, 2, scale="mean_log", median_cpm=200.0)
    np.testing.assert_allclose(noiseless_effects(adata).X, effects.X, atol=0.01)
    pearson, slope = agreement(mean_log_effects(adata, effects.obs["condition"]), effects.X)
    assert pearson > 0.97 and slope == pytest.approx(1, abs=0.03)


def test_always_marked_and_well_formed(pooled, tmp_path):
    _, adata = pooled
    assert adata.uns["simulated_cells"] is True and adata.uns["scbig"]["simulated"] is True
    assert adata.uns["effects_source"] == "a table made for a test"
    assert adata.X.format == "csr" and adata.X.dtype == np.int32 and (adata.X.data > 0).all()
    assert adata.obs["condition"].value_counts()["control"] == 3000
    assert (adata.obs["n_umis"].to_numpy() >= np.asarray(adata.X.sum(1)).ravel()).all()
    # Marks survive the file.
    adata[:50].write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert bool(again.uns["simulated_cells"])
    np.testing.assert_array_equal(noiseless_effects(again).X, noiseless_effects(adata).X)


def test_cells_covary_beyond_depth():
    top = []
    for sigma in (0.25, 0.0):
        adata = simulate_from_effects(
            table(2, 50), 3000, 4, control_share=0.9, depth=1e5, n_batches=1, programme_sigma=sigma
        )
        control = adata[adata.obs["condition"] == "control"]
        values = np.log1p(control.X.toarray() / control.obs["n_umis"].to_numpy()[:, None] * 1e5)
        top.append(np.linalg.eigvalsh(np.corrcoef(values.T))[-1])
    assert top[0] > 1.5 * top[1] and top[1] < 1.5


def test_response_is_uneven_between_cells():
    effects = table(2, 40, size=0.0)
    effects.X[0] = 1.5
    effects.X[0, 20:] = 0.0
    adata = simulate_from_effects(effects, 4000, 3, escape=0.4, depth=50_000.0, median_cpm=300.0)
    score = np.log1p(adata.X.toarray() / adata.obs["n_umis"].to_numpy()[:, None] * 1e4)[:, :20].mean(1)
    moved = score[(adata.obs["condition"] == "A0").to_numpy()]
    rest = score[(adata.obs["condition"] == "control").to_numpy()]
    unmoved = (moved < np.quantile(rest, 0.99)).mean()
    assert 0.3 < unmoved < 0.5


def test_deterministic_and_independent_of_threads(monkeypatch):
    effects = table(3, 20)
    one = simulate_from_effects(effects, 3000, 5)
    monkeypatch.setattr("scbig.data.simulate_effects.os.cpu_count", lambda: 1)
    two = simulate_from_effects(effects, 3000, 5)
    other = simulate_from_effects(effects, 3000, 6)
    assert (one.X != two.X).nnz == 0 and one.obs.equals(two.obs)
    assert (one.X != other.X).nnz > 0


def test_sparse_table_and_a_control_row_are_accepted():
    effects = table(3, 20)
    rows = [*effects.obs["condition"], "control"]
    with_control = ad.AnnData(
        sp.csr_matrix(np.vstack([effects.X, np.ones(20, np.float32)])),
        obs=pd.DataFrame({"condition": rows}, index=rows),
        var=effects.var,
    )
    one, two = simulate_from_effects(effects, 200, 0), simulate_from_effects(with_control, 200, 0)
    assert (one.X != two.X).nnz == 0


def repeated_condition(effects):
    effects.obs["condition"] = ["A0", "A0", "A1"]


def repeated_gene(effects):
    effects.var_names = ["g7", "g7", *effects.var_names[2:]]


def not_finite(effects):
    effects.X[1, 3] = np.nan


def no_condition(effects):
    del effects.obs["condition"]


def far_too_large(effects):
    effects.X[1] = 12.0


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (repeated_condition, "repeated condition A0"),
        (repeated_gene, "repeated gene g7"),
        (not_finite, "not finite in A1"),
        (no_condition, r'obs\["condition"\] is absent'),
        (far_too_large, "of the transcriptome in A1"),
    ],
)
def test_bad_tables_are_refused_by_name(damage, named):
    effects = table(3, 20)
    damage(effects)
    with pytest.raises(InputError, match=named):
        simulate_from_effects(effects, 500)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"n_cells": 4}, "n_cells=4"),
        ({"n_cells": 500, "scale": "cpm"}, "scale='cpm'"),
        ({"n_cells": 500, "escape": 1.0}, r"escape=1\.0"),
        ({"n_cells": 500, "control_share": 0.0}, r"control_share=0\.0"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, named):
    with pytest.raises(InputError, match=named):
        simulate_from_effects(table(3, 20), **settings)


def test_no_truth_to_give():
    with pytest.raises(InputError, match=r'uns\["truth"\] is absent'):
        noiseless_effects(table(3, 20))


@pytest.mark.realdata
def test_cells_around_norman_recover_its_effects(shared):
    effects = ad.read_h5ad(shared / "data" / "norman2019_effects.h5ad")[:6].copy()
    adata = simulate_from_effects(effects, 6000, 0)
    names = effects.obs["condition"]
    dense = effects.X.toarray() if sp.issparse(effects.X) else effects.X
    pearson, slope = agreement(pooled_effects(adata, names), dense)
    assert pearson > 0.9 and slope == pytest.approx(1, abs=0.05)
    assert agreement(mean_log_effects(adata, names), noiseless_effects(adata).X)[0] > 0.95
    assert "Norman" in adata.uns["effects_source"]
