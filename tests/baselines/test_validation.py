"""Choosing settings inside the training conditions: folds by name, an honest score, and Optuna behind one function."""

import sys

import numpy as np
import pytest

from scbig.baselines.smoother import left_out
from scbig.baselines.validation import folds, score, search
from scbig.errors import InputError


def test_folds_hang_on_names_and_not_on_their_order():
    names = [f"g{i}" for i in range(23)]
    first = folds(names, 5, 3)
    assert first == folds(names[::-1], 5, 3) != folds(names, 5, 4)
    assert sorted(g for fold in first for g in fold) == sorted(names)
    assert {len(fold) for fold in first} == {4, 5}
    assert len(folds(["a", "b", "c"], 5)) == 3


@pytest.mark.parametrize(
    ("names", "n", "told"), [(["a", "b", "a"], 2, "a"), (["a"], 5, "1 training"), (["a", "b"], 1, "1 folds")]
)
def test_folds_that_cannot_be_are_refused(names, n, told):
    with pytest.raises(InputError, match=told):
        folds(names, n)


def test_score_is_pearson_to_the_reference():
    rng = np.random.default_rng(0)
    x, y, ref = rng.normal(size=(4, 30)), rng.normal(size=(4, 30)), rng.normal(size=30)
    keep = rng.random((4, 30)) < 0.7
    expected = [np.corrcoef((x[i] - ref)[keep[i]], (y[i] - ref)[keep[i]])[0, 1] for i in range(4)]
    assert score(x, y, ref, keep) == pytest.approx(np.mean(expected), abs=1e-12)
    assert score(y, y, ref) == pytest.approx(1.0)
    assert score(np.tile(ref, (4, 1)) * (1 + 1e-9), y, ref) == 0.0
    x[:, ~keep[0]] = np.nan  # what does not count is never read
    assert np.isfinite(score(x[:1], y[:1], ref, keep[:1]))


def test_cross_validation_by_inner_products_is_that_of_the_predictions():
    rng = np.random.default_rng(1)
    names = [f"g{i:02}" for i in range(17)]
    y = rng.normal(size=(17, 40))
    at = {g: i for i, g in enumerate(names)}
    mix = rng.normal(size=(17, 17))
    centred = y - y.mean(axis=1, keepdims=True)

    def prepare(train, gram):
        rows = [at[g] for g in train]
        e = y[rows] - y[rows].mean(axis=0)
        e = e - e.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(gram, e @ e.T, atol=1e-10)
        return lambda genes, power: mix[np.ix_([at[g] for g in genes], rows)] ** power

    judge = left_out(names, centred @ centred.T, prepare, 4, 0)
    for power in (1, 2):
        scores, xy, xx = [], 0.0, 0.0
        for held in folds(names, 4, 0):
            out = [at[g] for g in held]
            rest = [i for i in range(17) if i not in out]
            ref = y[rest].mean(axis=0)
            predicted = ref + mix[np.ix_(out, rest)] ** power @ (y[rest] - ref)
            scores += [score(predicted[i : i + 1], y[out][i : i + 1], ref) for i in range(len(out))]
            p, t = (v - ref - (v - ref).mean(axis=1, keepdims=True) for v in (predicted, y[out]))
            xy, xx = xy + (p * t).sum(), xx + (p * p).sum()
        found, slope = judge(power)
        assert found == pytest.approx(np.mean(scores), abs=1e-10)
        assert slope == pytest.approx(max(0.0, xy / xx), abs=1e-10)


SPACE = {"a": (0.1, 10.0, "log"), "b": (-1.0, 1.0, "linear"), "n": (1, 8, "int")}


def peak(s):
    return -((np.log(s["a"]) - 1) ** 2) - s["b"] ** 2 - (s["n"] - 4) ** 2


def test_search_finds_a_peak_and_repeats_itself():
    best, tried = search(peak, SPACE, 60, 0)
    assert (best, tried) == search(peak, SPACE, 60, 0)
    assert len(tried) == 60 and set(tried[0]) == {"trial", "value", *SPACE}
    assert peak(best) == max(r["value"] for r in tried) > -0.5
    assert isinstance(best["n"], int) and all(0.1 <= r["a"] <= 10 for r in tried)
    assert search(peak, SPACE, 5, 1)[1] != tried[:5]


def test_search_records_failed_trials_and_leaves_loggers_alone():
    import optuna

    before = optuna.logging.get_verbosity()
    best, tried = search(lambda s: np.nan if s["b"] < 0 else peak(s), SPACE, 20, 0)
    assert best["b"] >= 0 and any(np.isnan(r["value"]) for r in tried)
    assert optuna.logging.get_verbosity() == before
    with pytest.raises(InputError, match="none of 3 trials over a, b, n"):
        search(lambda s: np.nan, SPACE, 3, 0)


@pytest.mark.parametrize(
    ("space", "trials", "told"),
    [
        ({"a": (0.0, 1.0, "log")}, 3, "range of a"),
        ({"a": (2.0, 1.0, "linear")}, 3, "range of a"),
        ({"a": (0.0, 1.0, "cubic")}, 3, "range of a"),
        ({"a": (0.0, 1.0, "linear")}, 0, "0 trials"),
        ({}, 3, "0 settings"),
    ],
)
def test_search_refuses_what_makes_no_sense(space, trials, told):
    with pytest.raises(InputError, match=told):
        search(lambda s: 0.0, space, trials, 0)


def test_search_without_optuna_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"scbig\[tune\]"):
        search(peak, SPACE, 2, 0)
