"""Corrected tests, seeds and intervals."""

import numpy as np
import pandas as pd
import pytest

from scbig.evaluation.statistics import holm, paired_tests, signed_rank

GROUP = {"all": pd.MultiIndex.from_product([[f"c{i}" for i in range(30)], ["all"]], names=["condition", "context"])}


def table(methods: dict[str, np.ndarray]) -> pd.DataFrame:
    rows = [(m, f"c{i}", "all", "pearson_delta", v) for m, values in methods.items() for i, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["method", "condition", "context", "metric", "value"])


def test_holm_against_statsmodels():
    from statsmodels.stats.multitest import multipletests

    p = np.random.default_rng(0).random(20) ** 3
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1])
    gapped = np.insert(p, 4, np.nan)
    assert np.isnan(holm(gapped)[4])
    np.testing.assert_allclose(np.delete(holm(gapped), 4), holm(p))
    assert holm(np.array([])).shape == (0,)


@pytest.mark.parametrize("n", [6, 9, 13, 14, 30, 60])
def test_signed_ranks_against_scipy(n):
    from scipy.stats import wilcoxon

    rng = np.random.default_rng(n)
    gap = rng.normal(0.3, 1, n)
    assert signed_rank(gap) == pytest.approx(wilcoxon(gap).pvalue, abs=1e-12)
    tied = np.round(rng.normal(0.3, 1, n) * 2) / 2
    if (tied != 0).sum() <= 9:
        assert signed_rank(tied) == pytest.approx(wilcoxon(tied[tied != 0]).pvalue, abs=1e-9)
    assert signed_rank(np.zeros(n)) == 1.0 and signed_rank(np.ones(n)) < 0.05


def test_a_real_difference_is_told_from_the_luck_of_many_rivals():
    rng = np.random.default_rng(0)
    ours = rng.normal(0.5, 0.1, 30)
    rivals = {f"r{i}": ours + rng.normal(0, 0.1, 30) for i in range(20)}
    found = paired_tests(
        table({"ours": ours, "worse": ours - 0.08 + rng.normal(0, 0.05, 30), **rivals}), GROUP, ["ours"]
    )
    found = found.set_index("second")
    assert found.loc["worse", "real"] and found.loc["worse", "mean"] > 0
    assert not found.drop(index="worse")["real"].any()
    assert (found["p_holm"] >= found["p"]).all() and set(found["n"]) == {30}


def test_false_alarms_stay_within_the_level():
    """Equal methods, many times over: at most about 5% of families name any difference."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        methods = {f"m{i}": rng.normal(0, 1, 30) for i in range(6)}
        alarms += paired_tests(table(methods), GROUP, ["m0"], draws=200)["real"].any()
    assert alarms <= 7


def test_with_few_conditions_the_interval_decides():
    few = {"all": GROUP["all"][:4]}
    found = paired_tests(table({"a": np.arange(4.0) + 1.0, "b": np.arange(4.0)}), few, ["a"])
    assert np.isnan(found["p"].iloc[0]) and found["real"].iloc[0]
    same = paired_tests(table({"a": np.array([1.0, -1, 1, -1]), "b": np.zeros(4)}), few, ["a"])
    assert not same["real"].iloc[0]


def test_methods_are_compared_where_both_answer():
    values = table({"a": np.arange(30.0), "b": np.arange(30.0) - 1.0})
    values = values[~((values["method"] == "b") & (values["condition"] == "c3"))]
    found = paired_tests(values, GROUP, ["a"])
    assert found["n"].iloc[0] == 29 and found["mean"].iloc[0] == pytest.approx(1.0)
