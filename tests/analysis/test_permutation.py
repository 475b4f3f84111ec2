import numpy as np
import pandas as pd
import pytest

from scbig.analysis import permutation
from scbig.errors import InputError


def screen(**counts):
    """A table of cells: ``condition=((batch, cells), …)``."""
    rows = [
        {"condition": name.replace("_", "+"), "context": "line", "batch": batch}
        for name, groups in counts.items()
        for batch, n in groups
        for _ in range(n)
    ]
    return pd.DataFrame(rows)


class TestContrasts:
    def test_perturbed_cells_stand_beside_controls_of_their_batches(self):
        obs = screen(control=(("a", 40), ("b", 30), ("c", 50)), A=(("a", 10), ("b", 25)))
        (found,), left_out = permutation.contrasts(obs)
        assert left_out.empty and (found.n_control, found.n_perturbed) == (70, 35)
        assert set(obs["batch"].iloc[found.rows]) == {"a", "b"}
        assert set(obs["condition"].iloc[found.rows[: found.n_control]]) == {"control"}

    def test_batches_weigh_as_among_perturbed_cells(self):
        obs = screen(control=(("a", 90), ("b", 30)), A=(("a", 10), ("b", 30)))
        (found,), _ = permutation.contrasts(obs)
        control = np.arange(len(found.rows)) < found.n_control
        for side in (control, ~control):
            share = np.bincount(found.batch[side], found.weight[side])
            np.testing.assert_allclose(share, [0.25, 0.75])

    @pytest.mark.parametrize(
        ("obs", "reason"),
        [
            (screen(control=(("a", 60),), A=(("a", 12),)), "12 cells, fewer than 30"),
            (screen(control=(("a", 60),), A=(("a", 20), ("b", 20))), "20 of 40 cells in batches with controls"),
            (screen(control=(("a", 5), ("b", 60)), A=(("a", 40),)), "5 controls in its batches"),
            (screen(control=(("a", 60),), B=(("a", 40),)), "no cells of it in this screen"),
        ],
    )
    def test_what_cannot_be_tested_is_named_with_the_reason(self, obs, reason):
        found, left_out = permutation.contrasts(obs, ("A",))
        assert not found
        assert left_out["condition"].tolist() == ["A"] and reason in left_out["reason"].item()

    def test_contexts_and_doses_are_apart(self):
        obs = screen(control=(("a", 80),), A=(("a", 80),))
        obs["context"] = np.tile(["x", "y"], 80)
        obs["dose"] = np.where(obs["condition"] == "A", np.tile([1.0, 1.0, 5.0, 5.0], 40), np.nan)
        found, left_out = permutation.contrasts(obs, least=20)
        assert left_out.empty
        assert [(c.context, c.dose, c.n_perturbed) for c in found] == [
            ("x", 1.0, 20), ("x", 5.0, 20), ("y", 1.0, 20), ("y", 5.0, 20),
        ]  # fmt: skip
        assert all(set(obs["context"].iloc[c.rows]) == {c.context} for c in found)

    def test_many_controls_are_drawn_from(self):
        obs = screen(control=(("a", 300),), A=(("a", 40),), B=(("a", 40),))
        first, second = permutation.contrasts(obs, most=100)[0]
        assert first.n_control == second.n_control == 100
        np.testing.assert_array_equal(first.rows[:100], second.rows[:100])

    def test_refuses_a_screen_that_says_too_little(self):
        with pytest.raises(InputError, match="batch"):
            permutation.contrasts(screen(control=(("a", 40),)).drop(columns="batch"))
        with pytest.raises(InputError, match="control"):
            permutation.contrasts(screen(A=(("a", 40),)))


def contrast():
    return permutation.contrasts(screen(control=(("a", 40), ("b", 30)), A=(("a", 15), ("b", 20))))[0][0]


def test_labels_are_swapped_within_batches():
    own = contrast()
    drawn = permutation.permuted(own, 50, np.random.default_rng(0))
    assert (own.batch[drawn] == own.batch).all()
    assert (np.sort(drawn, axis=1) == np.arange(len(own.rows))).all()
    assert (drawn[:, : own.n_control] >= own.n_control).any()


def test_the_bootstrap_draws_within_kind_and_batch():
    own = contrast()
    drawn = permutation.bootstrapped(own, 50, np.random.default_rng(0))
    assert (own.batch[drawn] == own.batch).all()
    assert ((drawn < own.n_control) == (np.arange(len(own.rows)) < own.n_control)).all()
    assert (np.sort(drawn, axis=1) != np.arange(len(own.rows))).any()


def test_a_draw_of_the_null_is_put_in_units_of_the_others():
    rng = np.random.default_rng(1)
    null, observed = rng.normal(3, 2, (12, 4)), rng.normal(3, 2, 4)
    z, drawn = permutation.standardized(observed, null)
    np.testing.assert_allclose(z, (observed - null.mean(axis=0)) / null.std(axis=0, ddof=1))
    for place in range(12):
        rest = np.delete(null, place, axis=0)
        np.testing.assert_allclose(drawn[place], (null[place] - rest.mean(axis=0)) / rest.std(axis=0, ddof=1))


def test_p_is_the_share_of_the_pooled_null_as_far_out():
    rng = np.random.default_rng(2)
    null, z = rng.normal(size=(20, 30)), np.array([0.0, -1.0, 2.5, 60.0, np.nan])
    tallied = permutation.tally(null[:10]) + permutation.tally(null[10:])
    p = permutation.p_values(z, tallied)
    expected = [(1 + (np.abs(null) >= abs(value)).sum()) / 601 for value in z[:4]]
    # The histogram is 0.001 wide, and errs towards a larger p.
    np.testing.assert_allclose(p[:4], expected, atol=2 / 601)
    assert (p[:4] >= np.array(expected) - 1e-12).all() and np.isnan(p[4])


def test_a_flat_null_gives_no_p():
    z, drawn = permutation.standardized(np.array([1.0, 1.0]), np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 4.0]]))
    assert np.isnan(z[0]) and np.isfinite(z[1])
    assert permutation.tally(drawn).sum() == 3


class TestNuisance:
    obs = pd.DataFrame({"size_factor": [100.0, 200.0, 400.0], "n_umis": [1.0, 1.0, 1.0]})
    x = np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 4.0, 35.0]])

    def test_depth_and_what_most_modules_do_are_columns(self):
        columns, words = permutation.nuisance_of(self.obs, self.x)
        np.testing.assert_allclose(columns[:, 0], np.log([0.5, 1.0, 2.0]), atol=1e-12)
        # The third module jumps in the third cell; the median does not follow.
        np.testing.assert_allclose(columns[:, 2], [-1.0, -1.0, 2.0])
        assert "size_factor" in words and "median" in words
        mean, words = permutation.nuisance_of(self.obs, self.x, "mean")
        np.testing.assert_allclose(mean[:, 0], np.array([-13.0, -13.0, 26.0]) / 3)
        assert "mean" in words

    def test_without_a_depth_the_median_stands_alone_and_the_words_say_so(self):
        columns, words = permutation.nuisance_of(self.obs[[]], self.x)
        assert columns.shape == (3, 1) and "factor" not in words
        assert permutation.nuisance_of(self.obs, self.x, "none")[0].shape == (3, 0)

    def test_refusals(self):
        with pytest.raises(InputError, match="choose one of depth"):
            permutation.nuisance_of(self.obs, self.x, "sex")
        with pytest.raises(InputError, match="neither size_factor"):
            permutation.nuisance_of(self.obs[[]], self.x, "depth")
        with pytest.raises(InputError, match="not positive"):
            permutation.nuisance_of(self.obs - 100.0, self.x, "depth")


def test_what_depth_explains_goes_and_what_the_perturbation_does_stays():
    own, rng = contrast(), np.random.default_rng(3)
    n, perturbed = len(own.rows), np.arange(len(own.rows)) >= own.n_control
    depth = np.empty((n, 1))
    depth[own.rows, 0] = rng.normal(size=n) + perturbed  # deeper where perturbed
    values = np.stack([2.0 * depth[own.rows, 0], perturbed.astype(float)], axis=1)
    left = permutation.adjusted(values, own, depth)
    assert np.ptp(left[:, 0]) < 1e-9
    np.testing.assert_allclose(left[:, 1], values[:, 1], atol=1e-9)
