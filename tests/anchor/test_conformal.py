import numpy as np
import pytest

from scbig.anchor.conformal import (
    ENOUGH,
    POOLED,
    Calibration,
    agreement,
    calibrate,
    coverage,
    effect_size,
    ensemble_spread,
    neighbour_error,
)
from scbig.errors import InputError


def screen(n, seed, genes=30, strength=None, tail=None):
    """Predictions and what is observed: errors of a scale per gene times one per condition."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(0, 0.7, genes))
    strength = np.exp(rng.normal(0, 0.5, n)) if strength is None else strength
    noise = rng.normal(size=(n, genes)) if tail is None else rng.standard_t(tail, size=(n, genes))
    predicted = rng.normal(size=(n, genes))
    return predicted, predicted + noise * scale * strength[:, None]


def named(n):
    return [f"g{i:03d}" for i in range(n)]


def covered(n, seed, levels, genes=30, new=200, tail=None):
    """Mean coverage of new conditions after calibration on n, by level."""
    predicted, observed = screen(n + new, seed, genes, tail=tail)
    c = calibrate(predicted[:n], observed[:n], named(genes), ["x"] * n, seed=seed)
    kind = ["x"] * new
    return [coverage(*c.intervals(predicted[n:], kind, level=level), observed[n:]).mean() for level in levels]


def test_new_conditions_are_covered_as_stated():
    # Sixty conditions at a time: the coverage of one calibration varies by some 3%, that of sixteen by under 1%.
    levels = np.array([0.5, 0.8, 0.9, 0.95])
    mean = np.mean([covered(60, seed, levels) for seed in range(16)], axis=0)
    assert (mean > levels - 0.02).all() and (mean < levels + 0.03).all()


@pytest.mark.parametrize("n", [10, 19])
def test_few_conditions_are_covered_no_less(n):
    values = np.ravel([covered(n, seed, [0.8], genes=4, new=100, tail=3) for seed in range(60)])
    assert values.mean() > 0.8 - 2 * values.std() / np.sqrt(len(values))


def test_the_quantile_counts_the_condition_to_come():
    # One gene and less than 20 conditions: every condition is left out by itself, all can be written down.
    n, rng = 19, np.random.default_rng(0)
    error = np.exp(rng.normal(size=n))
    predicted = np.zeros((n, 1)) + 1e-9
    c = calibrate(predicted, predicted + error[:, None], ["A"], ["x"] * n)
    log = np.log(error)
    others = np.exp((log.sum() - log) / (n - 1))
    scores = np.sort(error / others)
    for level, k in ((0.8, 16), (0.9, 18), (0.85, 17), (0.801, 17), (0.95, 19)):
        low, high = c.intervals(np.zeros((1, 1)), ["x"], level=level)
        assert (high - low)[0, 0] / 2 == pytest.approx(scores[k - 1] * np.exp(log.mean()), rel=1e-5)
    assert np.isinf(c.intervals(np.zeros((1, 1)), ["x"], level=0.951)).all()


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_too_few_conditions_give_infinite_intervals(n):
    predicted, observed = screen(n, 0)
    c = calibrate(predicted, observed, named(30), ["x"] * n, groups={"g001": "m", "g002": "m"})
    for modules in (False, True):
        low, high = c.intervals(predicted, ["x"] * n, modules=modules)
        assert (low == -np.inf).all() and (high == np.inf).all()
    predicted, observed = screen(9, 0)
    low, high = calibrate(predicted, observed, named(30), ["x"] * 9).intervals(predicted, ["x"] * 9)
    # The least number that can state 90%: no smaller than the largest error.
    assert np.isfinite(high - low).all() and coverage(low, high, observed).mean() > 0.95


def hard_and_easy(n, seed):
    rng = np.random.default_rng(seed)
    strength = np.exp(rng.uniform(-1.2, 1.2, n))
    predicted, observed = screen(n, seed, strength=strength)
    # What is told of the difficulty: its square root, not quite.
    return predicted, observed, np.sqrt(strength) * np.exp(rng.normal(0, 0.05, n))


def test_difficulty_restores_coverage_of_easy_and_hard_conditions():
    n, new = 120, 300
    with_spread, without = [], []
    for seed in range(4):
        predicted, observed, spread = hard_and_easy(n + new, seed)
        order = np.array_split(np.argsort(spread[n:]), 3)
        for given, out in ((spread, with_spread), (None, without)):
            c = calibrate(predicted[:n], observed[:n], named(30), ["x"] * n, None if given is None else given[:n])
            at = None if given is None else given[n:]
            low, high = c.intervals(predicted[n:], ["x"] * new, at)
            each = coverage(low, high, observed[n:])
            out.append([each[third].mean() for third in order])
            if given is not None:
                assert c.by_gene.scales.powers[0, 0] == pytest.approx(2, abs=0.3)
                found = agreement(low, high, observed[n:])
                assert found.conditions > 0.8 and found.genes > 0.3
    assert np.abs(np.mean(with_spread, axis=0) - 0.9).max() < 0.03
    easy, _, hard = np.mean(without, axis=0)
    assert easy > 0.97 and hard < 0.8


def test_difficulty_that_says_nothing_is_not_believed():
    predicted, observed = screen(100, 3)
    rng = np.random.default_rng(4)
    spread = np.exp(rng.normal(size=(100, 2)))
    c = calibrate(predicted, observed, named(30), ["x"] * 100, spread)
    low, high = c.intervals(predicted, ["x"] * 100, spread)
    plain = calibrate(predicted, observed, named(30), ["x"] * 100).intervals(predicted, ["x"] * 100)
    assert (high - low).mean() == pytest.approx((plain[1] - plain[0]).mean(), rel=0.1)
    # The harder, the wider, whatever the errors were: never the other way.
    strength = 1 / spread[:, 0]
    predicted, observed = screen(100, 3, strength=strength)
    assert calibrate(predicted, observed, named(30), ["x"] * 100, spread[:, 0]).by_gene.scales.powers.max() == 0


def test_nothing_is_taken_to_be_easier_than_what_was_seen():
    predicted, observed, spread = hard_and_easy(60, 0)
    c = calibrate(predicted, observed, named(30), ["x"] * 60, spread)
    at = np.array([0.0, spread.min(), spread.max(), 2 * spread.max()])
    low, high = c.intervals(np.zeros((4, 30)), ["x"] * 4, at)
    width = (high - low).mean(axis=1)
    assert width[0] == pytest.approx(width[1]) and width[1] < width[2] < width[3]


def kinds(n, seed):
    kind = np.array(["easy", "hard"] * (n // 2))
    strength = np.where(kind == "hard", 4.0, 1.0)
    return (*screen(n, seed, strength=strength), kind)


def test_kinds_of_condition_are_calibrated_apart():
    by_kind, pooled = [], []
    for seed in range(6):
        predicted, observed, kind = kinds(320, seed)
        old, new = slice(0, 120), slice(120, None)
        for told, out in ((kind, by_kind), (np.full(320, "any"), pooled)):
            c = calibrate(predicted[old], observed[old], named(30), told[old])
            each = coverage(*c.intervals(predicted[new], told[new]), observed[new])
            out.append([each[kind[new] == k].mean() for k in ("easy", "hard")])
    assert np.abs(np.mean(by_kind, axis=0) - 0.9).max() < 0.03
    easy, hard = np.mean(pooled, axis=0)
    assert easy > 0.97 and hard < 0.85


def test_a_kind_without_enough_conditions_gets_the_widest_interval():
    predicted, observed, kind = kinds(80, 0)
    kind = kind.astype("<U10")
    kind[:10] = "rare"
    c = calibrate(predicted, observed, named(30), kind)
    assert c.basis("hard") == "hard" and c.basis("rare") == c.basis("never met") == POOLED
    assert c.conditions() == {POOLED: 80, "easy": 35, "hard": 35} and ENOUGH > 10
    effect = np.tile(predicted[:1], (4, 1))
    low, high = c.intervals(effect, ["easy", "hard", "rare", "never met"])
    easy, hard, rare, never = high - low
    assert (rare >= easy).all() and (rare >= hard).all() and (hard > easy).all()
    np.testing.assert_array_equal(rare, never)


def test_the_order_of_genes_does_not_matter():
    predicted, observed, spread = hard_and_easy(40, 1)
    order = np.random.default_rng(0).permutation(30)
    genes = np.array(named(30))
    groups = {g: f"m{i % 4}" for i, g in enumerate(genes)}
    a = calibrate(predicted, observed, genes.tolist(), ["x"] * 40, spread, groups=groups)
    b = calibrate(predicted[:, order], observed[:, order], genes[order].tolist(), ["x"] * 40, spread, groups=groups)
    for modules, at in ((False, order), (True, slice(None))):
        one = a.intervals(predicted, ["x"] * 40, spread, modules=modules)
        other = b.intervals(predicted[:, order], ["x"] * 40, spread, modules=modules)
        np.testing.assert_allclose(one[0][:, at], other[0], rtol=1e-5, atol=1e-6)


def test_intervals_of_modules_are_those_of_their_means():
    predicted, observed, spread = hard_and_easy(60, 2)
    observed[3, 5] = np.nan
    groups = {g: "bc"[i % 2] for i, g in enumerate(named(30)) if i < 20} | {"elsewhere": "a"}
    c = calibrate(predicted, observed, named(30), ["x"] * 60, spread, groups=groups)
    assert c.modules == ("b", "c")
    members = [np.arange(0, 20, 2), np.arange(1, 20, 2)]
    mean, error = (
        np.stack([np.nanmean(x[:, m], axis=1) for m in members], axis=1) for x in (predicted, predicted - observed)
    )
    np.testing.assert_allclose(c.means(predicted), mean)
    by_hand = calibrate(mean, mean - error, ["b", "c"], ["x"] * 60, spread)
    for one, other in zip(
        c.intervals(predicted, ["x"] * 60, spread, 0.8, modules=True),
        by_hand.intervals(mean, ["x"] * 60, spread, 0.8),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_errors_that_fall_with_the_number_of_cells():
    rng = np.random.default_rng(0)
    cells = np.exp(rng.uniform(np.log(20), np.log(2000), 700))
    predicted, observed = screen(700, 0, strength=np.sqrt(0.2 + 0.8 * 200 / cells))
    old, new = slice(0, 200), slice(200, None)
    c = calibrate(predicted[old], observed[old], named(30), ["x"] * 200, n_cells=cells[old])
    low, high = c.intervals(predicted[new], ["x"] * 500, n_cells=cells[new])
    each = coverage(low, high, observed[new])
    few, many = cells[new] < 60, cells[new] > 600
    assert abs(each[few].mean() - 0.9) < 0.05 and abs(each[many].mean() - 0.9) < 0.05
    usual, none, endless = (
        np.ptp(c.intervals(predicted[:1], ["x"], n_cells=given), axis=0).mean()
        for given in (None, np.array([np.median(cells[old])]), np.array([np.inf]))
    )
    assert usual == pytest.approx(none) and endless < 0.8 * usual
    unknown = calibrate(predicted[old], observed[old], named(30), ["x"] * 200, n_cells=np.r_[0, cells[1:200]])
    assert unknown.by_gene.scales.noise.max() == 0


def test_values_that_were_not_recorded_are_covered_wherever_they_lie():
    predicted, truth = screen(400, 5)
    recorded = np.abs(truth) >= 1
    observed, within = np.where(recorded, truth, 0.0), np.where(recorded, 0.0, 1.0)
    c = calibrate(predicted[:200], observed[:200], named(30), ["x"] * 200, within=within[:200])
    low, high = c.intervals(predicted[200:], ["x"] * 200)
    sure = coverage(low, high, observed[200:], within[200:])
    assert abs(sure.mean() - 0.9) < 0.04
    assert (coverage(low, high, truth[200:]) >= sure).all()


def test_what_was_not_measured_does_not_count():
    predicted, observed = screen(60, 6)
    gaps = observed.copy()
    gaps[:, 7] = np.nan
    c = calibrate(predicted, gaps, named(30), ["x"] * 60)
    high = c.intervals(predicted, ["x"] * 60)[1]
    assert np.isinf(high[:, 7]).all()
    rest = np.delete(np.arange(30), 7)
    without = calibrate(predicted[:, rest], observed[:, rest], np.array(named(30))[rest].tolist(), ["x"] * 60)
    np.testing.assert_allclose(high[:, rest], without.intervals(predicted[:, rest], ["x"] * 60)[1], rtol=1e-5)


def test_residuals_of_the_fit_itself_are_too_small_and_rows_not_left_out_are_refused():
    rng = np.random.default_rng(0)
    x, new = rng.normal(size=(50, 25)), rng.normal(size=(400, 25))
    weights = rng.normal(size=(25, 30))
    y, truth = (z @ weights + rng.normal(size=(len(z), 30)) for z in (x, new))
    hat = x @ np.linalg.pinv(x)
    fitted = hat @ y
    left_out = y - (y - fitted) / (1 - np.diag(hat))[:, None]
    predicted = new @ np.linalg.pinv(x) @ y
    found = {}
    for name, each in (("in sample", fitted), ("out of fold", left_out)):
        c = calibrate(each, y, named(30), ["x"] * 50)
        found[name] = coverage(*c.intervals(predicted, ["x"] * 400), truth).mean()
    assert found["in sample"] < 0.75 and 0.87 < found["out of fold"] < 0.95
    copied = left_out.copy()
    copied[4] = y[4]
    with pytest.raises(InputError, match="exactly as measured.*row 4"):
        calibrate(copied, y, named(30), ["x"] * 50)


def test_a_file_gives_the_same_intervals(tmp_path):
    predicted, observed, kind = kinds(80, 1)
    spread = effect_size(predicted)
    cells = np.random.default_rng(0).integers(20, 400, 80)
    groups = {g: f"m{i % 3}" for i, g in enumerate(named(30))}
    c = calibrate(predicted, observed, named(30), kind, spread, cells, groups)
    c.save(tmp_path / "intervals.npz")
    again = Calibration.load(tmp_path / "intervals.npz")
    assert (again.genes, again.modules, again.conditions()) == (c.genes, c.modules, c.conditions())
    for modules in (False, True):
        for level in (0.5, 0.9):
            one = c.intervals(predicted, kind, spread, level, modules, cells)
            np.testing.assert_array_equal(one, again.intervals(predicted, kind, spread, level, modules, cells))
    assert [p.name for p in tmp_path.iterdir()] == ["intervals.npz"]


@pytest.mark.parametrize("damage", ["cut", "text", "absent", "other", "less", "nan", "mixed", "object"])
def test_damaged_files_are_refused_in_one_line(tmp_path, damage):
    path = tmp_path / "intervals.npz"
    predicted, observed = screen(30, 0)
    calibrate(predicted, observed, named(30), ["x"] * 30).save(path)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "text":
        path.write_text("nothing of the kind")
    elif damage == "absent":
        path.unlink()
    else:
        change = {
            "other": {"genes": None}, "less": {"gene.scale": arrays["gene.scale"][:-1]},
            "nan": {"gene.levels": arrays["gene.levels"] * np.nan}, "mixed": {"gene.n": arrays["gene.n"][:1]},
            "object": {"gene.scale": np.array([{}], object)},
        }[damage]  # fmt: skip
        np.savez(path, **{k: v for k, v in (arrays | change).items() if v is not None})
    with pytest.raises(InputError, match=r"intervals\.npz") as caught:
        Calibration.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": ["x"] * 3}, "kind of another length"),
        ({"genes": ["A"] * 30}, "more than once"),
        ({"spread": np.full(40, -1.0)}, "none negative"),
        ({"predicted": np.full((40, 30), np.nan)}, "must be finite"),
        ({"observed": np.full((40, 30), np.nan)}, "no value at all"),
        ({"n_cells": np.ones(3)}, "n_cells must be 40 numbers"),
    ],
)
def test_mistakes_of_calibration_are_told(change, message):
    predicted, observed = screen(40, 0)
    given = {"predicted": predicted, "observed": observed, "genes": named(30), "kind": ["x"] * 40} | change
    with pytest.raises(InputError, match=message):
        calibrate(**given)


def test_mistakes_of_use_are_told():
    predicted, observed = screen(40, 0)
    plain = calibrate(predicted, observed, named(30), ["x"] * 40)
    spread = calibrate(predicted, observed, named(30), ["x"] * 40, effect_size(predicted))
    with pytest.raises(InputError, match="knows no modules"):
        plain.intervals(predicted, ["x"] * 40, modules=True)
    with pytest.raises(InputError, match="level is a share"):
        plain.intervals(predicted, ["x"] * 40, level=90.0)
    with pytest.raises(InputError, match="30 genes"):
        plain.intervals(predicted[:, :3], ["x"] * 40)
    with pytest.raises(InputError, match="1 measures of difficulty, but 0"):
        spread.intervals(predicted, ["x"] * 40)
    with pytest.raises(InputError, match="0 measures of difficulty, but 1"):
        plain.intervals(predicted, ["x"] * 40, np.ones(40))


def test_the_spread_of_an_ensemble():
    effects = np.zeros((3, 2, 4))
    effects[:, 1] = np.array([1.0, 2.0, 3.0])[:, None]
    np.testing.assert_allclose(ensemble_spread(effects), [0, 1])
    np.testing.assert_allclose(effect_size(effects[2]), [0, 3])
    with pytest.raises(InputError, match="at least two members"):
        ensemble_spread(effects[:1])


def test_errors_of_similar_conditions():
    error = np.array([1.0, 4.0, 16.0])
    similar = np.array([[0.5, np.nan, -1.0], [0.0, np.nan, np.nan], [1.0, 0.5, 0.5]])
    found = neighbour_error(similar, error)
    # Geometric mean 4, which counts a quarter beside the squared similarities.
    np.testing.assert_allclose(found[:2], [2.0, 4.0])
    assert found[2] == pytest.approx(np.exp((0.25 * np.log(4) + 0.25 * np.log(16) + 0.25 * np.log(4)) / 1.75))
    # Ties are all asked, in whatever order they stand; the third is not among the two most similar.
    few = neighbour_error(np.array([[0.9, 0.8, 0.1]]), error, neighbours=2)
    assert few == pytest.approx(np.exp((0.64 + 0.25) * np.log(4) / (0.81 + 0.64 + 0.25)))
    tied = np.array([[0.5, 0.9, 0.5]])
    np.testing.assert_allclose(neighbour_error(tied, error, 2), neighbour_error(tied[:, ::-1], error[::-1], 2))
    with pytest.raises(InputError, match="positive numbers"):
        neighbour_error(similar, np.array([1.0, 0.0, 2.0]))


def test_coverage_and_agreement_by_hand():
    low, high = np.array([[-1.0, -1], [-2, -4], [-3, -5]]), np.array([[1.0, 1], [2, 4], [3, 5]])
    observed = np.array([[0.5, 2.0], [1.0, np.nan], [3.0, -5.0]])
    np.testing.assert_allclose(coverage(low, high, observed), [0.5, 1, 1])
    np.testing.assert_allclose(coverage(low, high, observed, np.full((3, 2), 0.6)), [0, 1, 0])
    # Mean widths 2, 4, 8 and mean errors 1.25, 1, 4.
    assert agreement(low, high, observed).conditions == pytest.approx(0.5)
    rng = np.random.default_rng(0)
    half = rng.uniform(1, 2, (20, 9))
    found = agreement(-half, half, half**2)
    assert found.genes == pytest.approx(1)
    same = agreement(-np.ones((20, 9)), np.ones((20, 9)), half)
    assert np.isnan(same.conditions) and np.isnan(same.genes)
