import numpy as np
import pandas as pd
import pytest

from scbig.analysis.shift import agreement, predicted_shifts, shifts


def cells(n_control=300, n_each=60, conditions=("A", "B", "C"), columns=6, seed=0):
    """Noise in two batches: the table of cells and values."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(["control", *conditions], [n_control] + [n_each] * len(conditions))
    obs = pd.DataFrame({"condition": labels, "context": "line", "batch": np.tile(["a", "b"], len(labels) // 2)})
    return obs, rng.normal(size=(len(labels), columns))


def test_a_planted_shift_is_called_and_nothing_else():
    obs, values = cells()
    values[obs["condition"] == "B", 2] += 1.0
    table, left_out, boots = shifts(values, obs)
    assert left_out.empty and len(table) == 18
    called = table[table["q"] < 0.05]
    assert called[["condition", "module"]].values.tolist() == [["B", 2]]
    row = called.iloc[0]
    assert row["low"] < row["shift"] < row["high"] and 0.7 < row["effect"] < 1.4
    assert row["shift"] == pytest.approx(row["perturbed"] - row["control"])
    assert boots["B", "line", 0.0].shape == (200, 6)


def test_p_is_uniform_where_nothing_happens():
    obs, values = cells(n_each=40, conditions=tuple("ABCDEFGHIJ"), columns=50, seed=4)
    p = shifts(values, obs, draws=2, permutations=100)[0]["p"]
    for level in (0.05, 0.25, 0.5, 0.75):
        assert (p < level).mean() == pytest.approx(level, abs=0.05)


def test_heavy_tails_are_not_called_more_often_than_asked():
    wrong = 0
    for seed in range(20):
        obs, values = cells(columns=20, seed=seed)
        table, _, _ = shifts(np.exp(values), obs, draws=2, permutations=100)
        wrong += (table["q"] < 0.05).any()
    # Each screen has a chance of 5%; of 20, more than four are wrong in 0.3% of cases.
    assert wrong <= 4


def test_a_batch_of_its_own_level_is_no_shift():
    obs, values = cells()
    few = np.flatnonzero((obs["condition"] == "A") & (obs["batch"] == "b"))[:20]
    obs.loc[few, "batch"] = "a"
    values[obs["batch"] == "a"] += 3.0
    table, _, _ = shifts(values, obs, draws=2)
    assert not (table["q"] < 0.05).any()
    blind, _, _ = shifts(values, obs.assign(batch="all"), draws=2)
    assert (blind[blind["condition"] == "A"]["q"] < 0.05).all()


def test_depth_is_no_shift_where_it_is_regressed_out():
    obs, values = cells()
    rng = np.random.default_rng(6)
    depth = rng.normal(size=len(obs)) + 1.0 * (obs["condition"] == "A").to_numpy()
    values += depth[:, None]
    table, _, _ = shifts(values, obs, nuisance=depth[:, None], draws=2)
    assert not (table["q"] < 0.05).any()
    assert (shifts(values, obs, draws=2)[0].query("condition == 'A'")["q"] < 0.05).all()


def test_the_company_of_a_condition_does_not_change_its_shift():
    obs, values = cells()
    alone, together = shifts(values, obs, ("B",))[0], shifts(values, obs)[0].query("condition == 'B'")
    for name in ("shift", "low", "high", "z"):
        np.testing.assert_allclose(alone[name], together[name])


def test_nothing_to_test_gives_an_empty_table_and_says_why():
    obs, values = cells(n_each=20)
    table, left_out, boots = shifts(values, obs)
    assert table.empty and not boots and {"condition", "q", "n_cells"} <= set(table)
    assert left_out["reason"].tolist() == ["20 cells, fewer than 30"] * 3


class TestPredicted:
    def pairs(self, n=200):
        rng = np.random.default_rng(7)
        sources = np.tile(rng.normal(size=(n, 5)), (2, 1))
        obs = pd.DataFrame({"condition": np.repeat(["A", "B"], n), "context": "line"})
        return sources, sources + 0.05 * rng.normal(size=sources.shape), obs

    def test_each_cell_is_compared_with_its_own_source(self):
        sources, moved, obs = self.pairs()
        moved[obs["condition"] == "A", 1] += 0.03
        table, boots = predicted_shifts(moved, sources, obs)
        # Small beside the spread of cells (1), large beside that of the pairs (0.05).
        assert table[table["q"] < 0.05][["condition", "module"]].values.tolist() == [["A", 1]]
        assert table.loc[1, "shift"] == pytest.approx(0.03, abs=0.01)
        assert set(boots) == {("A", "line", 0.0), ("B", "line", 0.0)}

    def test_what_goes_with_the_cell_is_regressed_out(self):
        sources, moved, obs = self.pairs()
        before, after = np.random.default_rng(8).normal(size=(2, len(obs), 1))
        after += 0.5
        bare, _ = predicted_shifts(moved + after, sources + before, obs)
        assert (bare["shift"] > 0.3).all()
        table, _ = predicted_shifts(moved + after, sources + before, obs, nuisance=(after, before))
        # What is left is the error of the slope, a fifteenth, times the difference of a half.
        assert (table["shift"].abs() < 0.1).all()

    def test_a_model_that_moves_nothing_shifts_nothing(self):
        sources, _, obs = self.pairs()
        table, _ = predicted_shifts(sources, sources, obs)
        assert (table["shift"] == 0).all() and table["p"].isna().all()


class TestAgreement:
    def tables(self, scale, n=400):
        """Real shifts of a size, and a prediction of them that is right."""
        obs, values = cells(n_each=n, n_control=n, conditions=("A",), columns=12)
        truth = scale * np.linspace(-1, 1, 12)
        values[obs["condition"] == "A"] += truth
        real, _, drawn = shifts(values, obs)
        sources = np.random.default_rng(9).normal(size=(n, 12))
        pairs = pd.DataFrame({"condition": ["A"] * n, "context": "line"})
        predicted, other = predicted_shifts(sources + truth, sources, pairs)
        return real, predicted, drawn, other

    def test_a_right_prediction_agrees_as_far_as_noise_lets_it(self):
        clear, vague = (agreement(*self.tables(scale)).iloc[0] for scale in (1.0, 0.08))
        assert clear["r"] > 0.98 and clear["ceiling"] > 0.98 and clear["low"] > 0.95
        assert vague["r"] < 0.95 and vague["ceiling"] < 0.9
        assert vague["high"] - vague["low"] > clear["high"] - clear["low"]
        assert clear["low"] < clear["r"] < clear["high"]

    def test_signs_are_compared_where_the_real_shift_is_called(self):
        real, predicted, drawn, other = self.tables(1.0)
        predicted.loc[0, "shift"] *= -1
        row = agreement(real.assign(called=real["module"] < 2), predicted, drawn, other).iloc[0]
        assert row["n_called"] == 2 and row["same_sign"] == 0.5

    def test_a_prediction_that_says_the_same_of_all_is_shown_up(self):
        obs, values = cells(columns=12)
        values[obs["condition"] != "control"] += np.linspace(-1, 1, 12)
        real, _, drawn = shifts(values, obs)
        pairs = pd.DataFrame({"condition": np.repeat(["A", "B"], 100), "context": "line"})
        sources = np.random.default_rng(10).normal(size=(200, 12))
        table = agreement(real, *self.same(sources, pairs, drawn))
        assert (table["r_others"] > 0.9).all() and table["condition"].tolist() == ["A", "B"]

    def same(self, sources, pairs, drawn):
        predicted, other = predicted_shifts(sources + np.linspace(-1, 1, 12), sources, pairs)
        return predicted, drawn, other

    def test_conditions_of_one_side_only_are_left_out(self):
        real, predicted, drawn, _ = self.tables(1.0)
        assert agreement(real, predicted, drawn, {}).empty
