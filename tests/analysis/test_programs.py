"""Changes of modules: known shifts, matched controls, perturbed genes left out."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy import stats

from scbig.analysis.programs import agreement, changes, module_scores, welch
from scbig.errors import InputError
from scbig.modules import Modules

GENES = tuple(f"G{i}" for i in range(12))
MODULE = np.repeat(np.arange(3), 4)


def modules():
    return Modules(GENES, MODULE, np.tile(np.arange(4), 3), np.zeros(12))


def screen(shift=0.4, n=400, seed=0, batch_shift=0.0):
    """Controls and one condition whose first module moves; the condition is mostly in the second batch."""
    rng = np.random.default_rng(seed)
    condition = np.array(["control"] * n + ["G5"] * n)
    batch = np.concatenate([rng.random(n) < 0.3, rng.random(n) < 0.8]).astype(int)
    x = rng.normal(1.0, 0.5, (2 * n, 12)) + batch_shift * batch[:, None]
    x[n:, MODULE == 0] += shift
    x[n:, 5] -= 3.0  # the perturbed gene itself, in the second module
    obs = pd.DataFrame({"condition": condition, "context": "a", "batch": batch.astype(str)})
    return sp.csr_matrix(x), obs, {("G5", "a"): np.arange(n, 2 * n)}


def test_scores_are_means_of_genes_that_count():
    x = np.random.default_rng(0).normal(size=(5, 12))
    found = module_scores(x, modules(), ("G5",))
    np.testing.assert_allclose(found[:, 0], x[:, :4].mean(axis=1))
    np.testing.assert_allclose(found[:, 1], x[:, [4, 6, 7]].mean(axis=1))
    assert np.isnan(module_scores(x, modules(), GENES[:4])[:, 0]).all()


def test_welch_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, (30, 2)), rng.normal(0, 2, (50, 2))
    table, oracle = welch(a, b), stats.ttest_ind(a, b, equal_var=False)
    np.testing.assert_allclose(table["p"], oracle.pvalue)
    np.testing.assert_allclose(table["df"], oracle.df)
    interval = oracle.confidence_interval(0.95)
    np.testing.assert_allclose(table[["low", "high"]].to_numpy().T, [interval.low, interval.high])


def test_a_planted_shift_is_found_and_nothing_else():
    table = changes(*screen()[:2], modules(), screen()[2])
    assert table["low"][0] < 0.4 < table["high"][0]
    assert table["q"][0] < 1e-6
    # G5 fell by 3, but does not count in its own module.
    assert (table["q"][1:] > 0.05).all()
    assert table["low"][1] < 0 < table["high"][1]


def test_controls_of_the_same_batch_take_the_batch_out():
    x, obs, rows = screen(shift=0.0, batch_shift=1.0)
    assert (changes(x, obs, modules(), rows)["q"] > 0.05).all()
    assert (changes(x, obs.drop(columns="batch"), modules(), rows)["q"] < 0.01).all()


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(400):
        strata, base = rng.integers(0, 3, 12), rng.integers(0, 3, 20)
        a, b = rng.normal(0.5, 1, (12, 1)) + strata[:, None], rng.normal(0, 2, (20, 1)) + base[:, None]
        table = welch(a, b, strata, base)
        hits += bool(table["low"][0] <= 0.5 <= table["high"][0])
    assert 0.91 < hits / 400 < 0.98


def test_the_order_of_genes_does_not_matter():
    x, obs, rows = screen()
    order = np.random.default_rng(1).permutation(12)
    again = modules().reorder([GENES[i] for i in order])
    a, b = changes(x, obs, modules(), rows), changes(x[:, order], obs, again, rows)
    np.testing.assert_allclose(a["change"], b["change"])
    np.testing.assert_allclose(a["p"], b["p"])


def test_a_context_without_controls_is_refused():
    x, obs, rows = screen(n=30)
    with pytest.raises(InputError, match="context b"):
        changes(x, obs, modules(), {("G5", "b"): rows["G5", "a"]})


def test_agreement_counts_signs_of_called_modules_and_cover():
    table = pd.DataFrame({
        "condition": "A", "context": "a", "change": [1.0, -1.0, 2.0, 0.1], "q": [0.01, 0.01, 0.01, 0.9],
        "predicted": [0.5, 0.5, 1.5, -0.3], "predicted_low": [0.0, 0.0, 1.0, np.nan],
        "predicted_high": [1.5, 1.0, 2.5, np.nan],
    })  # fmt: skip
    row = agreement(table).iloc[0]
    assert (row["n_called"], row["same_sign"], row["covered"]) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert row["same_sign_low"] == pytest.approx(0.2077, abs=1e-3)
    assert row["error"] == pytest.approx(np.sqrt((0.25 + 2.25 + 0.25 + 0.16) / 4))
