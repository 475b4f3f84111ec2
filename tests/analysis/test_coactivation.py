import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig.analysis import Ask, coactivation, load
from scbig.analysis.coactivation import correlations, scores_without
from scbig.errors import InputError
from scbig.modules import Modules

GENES, MODULES, PER = 48, 6, 8


def partition():
    module = np.repeat(np.arange(MODULES), PER)
    return Modules(tuple(f"g{i:02d}" for i in range(GENES)), module, np.tile(np.arange(PER), MODULES), np.zeros(GENES))


def screen(seed=0, n_control=300, n_perturbed=90, counts=False, **levels):
    """Cells of control and A in two batches; ``levels`` gives, per cell, what is added to all genes of some modules.

    Args:
        counts: draws counts of a library shared out by exp(level), and normalises them by its size, as a screen is.
    """
    rng = np.random.default_rng(seed)
    n = n_control + n_perturbed
    perturbed = np.arange(n) >= n_control
    obs = pd.DataFrame({"condition": np.where(perturbed, "A", "control"), "context": "line"}, index=map(str, range(n)))
    obs["batch"] = np.where(rng.random(n) < 0.5, "a", "b")
    level = np.zeros((n, GENES))
    for function, places in levels.values():
        level[:, np.isin(partition().module, places)] += function(rng, perturbed, obs)[:, None]
    if counts:
        depth = 1000 * np.exp(rng.normal(0, 0.3, n))
        obs["size_factor"] = depth
        share = np.exp(level) / np.exp(level).sum(axis=1, keepdims=True)
        x = np.log1p(rng.poisson(depth[:, None] * share) / depth[:, None] * 1000)
    else:
        x = 3.0 + level + rng.normal(size=(n, GENES))
    return ad.AnnData(sp.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=list(partition().genes)))


def called(adata, **options):
    table, _ = coactivation.coactivation(adata, partition(), draws=50, **options)
    return {(a, b) for a, b in table[table["q"] < 0.05][["module_a", "module_b"]].to_numpy().tolist()}


def when_perturbed(rng, perturbed, obs):
    return perturbed * rng.normal(size=len(obs))


class TestCalls:
    def test_modules_that_vary_together_in_perturbed_cells_alone(self):
        adata = screen(both=(when_perturbed, [1, 4]))
        table, left_out = coactivation.coactivation(adata, partition(), nuisance="none")
        assert left_out.empty and len(table) == 15
        row = table[table["q"] < 0.05]
        assert row[["module_a", "module_b"]].to_numpy().tolist() == [[1, 4]]
        row = row.iloc[0]
        assert row["r_perturbed"] > 0.6 and abs(row["r_control"]) < 0.2 and row["rate"] == 1.0
        assert row["low"] < row["change"] < row["high"]
        assert row["change"] == pytest.approx(np.arctanh(row["r_perturbed"]) - np.arctanh(row["r_control"]))

    def test_modules_that_vary_together_in_all_cells_do_not_change(self):
        adata = screen(both=(lambda rng, perturbed, obs: rng.normal(size=len(obs)), [1, 4]))
        table, _ = coactivation.coactivation(adata, partition(), nuisance="none", draws=20)
        row = table.query("module_a == 1 and module_b == 4").iloc[0]
        assert row["r_control"] > 0.6 and row["q"] > 0.05

    def test_another_mean_or_spread_is_no_change_of_correlation(self):
        adata = screen()
        x, perturbed = adata.X.toarray(), (adata.obs["condition"] == "A").to_numpy()
        x[perturbed] = 4.0 * x[perturbed] - 7.0
        adata.X = sp.csr_matrix(x)
        assert not called(adata, nuisance="none")

    @pytest.mark.parametrize("nuisance", ["depth", "depth+median"])
    def test_what_depth_drives_is_not_called(self, nuisance):
        """Perturbed cells differ more in depth, and all modules with them."""
        adata, rng = screen(), np.random.default_rng(3)
        depth = rng.normal(size=adata.n_obs) * np.where(adata.obs["condition"] == "A", 1.0, 0.2)
        adata.obs["size_factor"] = np.exp(depth)
        adata.X = sp.csr_matrix(adata.X.toarray() + depth[:, None] + 0.2 * depth[:, None] ** 2)
        assert len(called(adata, nuisance="none")) == 15
        assert not called(adata, nuisance=nuisance)

    def test_what_the_library_drives_is_not_called(self):
        """One module rises, more in some cells than in others; counts are shares, so all others fall by as much."""
        adata = screen(one=(lambda rng, p, obs: p * np.exp(rng.normal(0, 0.5, len(obs))), [0]), counts=True)
        others = {(a, b) for a in range(1, 6) for b in range(a + 1, 6)}
        assert called(adata, nuisance="depth") >= others
        assert not called(adata) & others

    def test_batches_do_not_make_correlations(self):
        adata = screen(
            two=(lambda rng, p, obs: np.where(obs["batch"] == "a", 2.0, 0.0), [2, 3]),
        )
        # Hardly a control in batch a: batch would correlate the two modules in perturbed cells alone.
        few = np.flatnonzero((adata.obs["condition"] == "control") & (adata.obs["batch"] == "a"))[10:]
        adata = adata[np.setdiff1d(np.arange(adata.n_obs), few)].copy()
        assert (2, 3) not in called(adata, nuisance="none")
        adata.obs["batch"] = "one"
        assert (2, 3) in called(adata, nuisance="none")

    def test_p_is_uniform_where_labels_mean_nothing(self):
        shares = []
        for seed in range(12):
            adata = screen(seed, both=(lambda rng, p, obs: rng.normal(size=len(obs)), [1, 4]))
            table, _ = coactivation.coactivation(adata, partition(), draws=2, permutations=100, seed=seed)
            shares.append([(table["p"] < level).mean() for level in (0.05, 0.5)])
        low, middle = np.mean(shares, axis=0)
        assert low == pytest.approx(0.05, abs=0.04) and middle == pytest.approx(0.5, abs=0.12)


class TestWhatIsNotTested:
    def test_few_cells_are_named(self):
        table, left_out = coactivation.coactivation(screen(n_perturbed=20), partition(), ("A", "B"))
        assert table.empty and {"q", "rate", "n_cells"} <= set(table)
        assert left_out["reason"].tolist() == ["20 cells, fewer than 30", "no cells of it in this screen"]

    def test_a_module_that_does_not_vary_is_named(self):
        adata = screen()
        x = adata.X.toarray()
        x[:, partition().module == 5] = 1.0
        adata.X = sp.csr_matrix(x)
        table, left_out = coactivation.coactivation(adata, partition(), draws=5, permutations=20)
        assert len(table) == 10 and 5 not in set(table["module_b"])
        assert left_out["condition"].tolist() == ["A"] and "5 pairs" in left_out["reason"].item()

    def test_genes_of_another_panel_are_refused(self):
        adata = screen()
        adata.var_names = [f"h{i}" for i in range(GENES)]
        with pytest.raises(InputError, match="not those of the modules"):
            coactivation.coactivation(adata, partition())


def test_scores_leave_perturbed_genes_out():
    adata = screen()
    x = adata.X.toarray()
    np.testing.assert_allclose(scores_without(adata, partition())[:, 1], x[:, 8:16].mean(axis=1), rtol=1e-6)
    some = scores_without(adata, partition(), ("g08", "g15"), np.arange(4))
    np.testing.assert_allclose(some[:, 1], x[:4, 9:15].mean(axis=1), rtol=1e-6)
    assert np.isnan(scores_without(adata, partition(), partition().members(2))[:, 2]).all()


class TestCorrelations:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(40, 3)) @ rng.normal(size=(3, 3))

    def test_are_pearsons_where_nothing_is_regressed_out(self):
        found = correlations(self.scores, np.ones((40, 1)), np.ones(40))
        np.testing.assert_allclose(found, np.corrcoef(self.scores.T), atol=1e-12)

    def test_are_partial_where_something_is(self):
        design = np.stack([np.ones(40), self.scores[:, 2]], axis=1)
        left = self.scores - design @ np.linalg.lstsq(design, self.scores, rcond=None)[0]
        found = correlations(self.scores, design, np.ones(40))
        assert found[0, 1] == pytest.approx(np.corrcoef(left[:, :2].T)[0, 1])
        assert np.isnan(found[2]).all()

    def test_a_weight_of_two_is_a_cell_twice(self):
        weight = np.arange(40) % 2 + 1
        twice = np.repeat(self.scores, weight, axis=0)
        found = correlations(self.scores, np.ones((40, 1)), weight.astype(float))
        np.testing.assert_allclose(found, np.corrcoef(twice.T), atol=1e-12)


def test_the_same_seed_gives_the_same_table_and_company_does_not_matter():
    adata = screen(both=(when_perturbed, [1, 4]))
    half = np.flatnonzero(adata.obs["condition"] == "A")[::2]
    adata.obs.iloc[half, adata.obs.columns.get_loc("condition")] = "B"
    alone, _ = coactivation.coactivation(adata, partition(), ("A",), draws=20, permutations=20)
    again, _ = coactivation.coactivation(adata, partition(), ("A",), draws=20, permutations=20)
    pd.testing.assert_frame_equal(alone, again)
    both, _ = coactivation.coactivation(adata, partition(), draws=20, permutations=20)
    for name in ("r_control", "change", "low", "high", "rate", "z"):
        np.testing.assert_allclose(both[both["condition"] == "A"][name], alone[name])


def test_the_report_of_a_run(tiny_run):
    view = load(tiny_run)
    few = view.conditions("test")[0]
    section = coactivation.report(
        view, Ask(draws=20, permutations=20, conditions=(*view.conditions("train"), few, "NOVEL"))
    )
    table = section.tables["coactivation"]
    assert f"{len(table)} pairs of modules" in section.text and "NOVEL (no cells of it" in section.text
    tested = set(table["condition"])
    untested = set(section.tables["coactivation_untested"]["condition"])
    assert tested | untested == {*view.conditions("train"), few, "NOVEL"}
    assert {"label_a", "label_b", "called"} <= set(table) and (table["label_a"].str.startswith("M")).all()
    for figure in section.figures:
        assert figure.draw().axes and figure.caption
