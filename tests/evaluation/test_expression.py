"""Tests of differential expression and the metrics made of them, against scipy, sklearn, loops and known answers."""

import numpy as np
import pytest
import scipy.sparse as sp
import sklearn.metrics as skm
from scipy import stats

from scbig.errors import InputError
from scbig.evaluation import expression as de

SPARSE = [sp.csr_matrix, sp.csr_array, sp.csc_matrix]


def values(kind: str, dtype, n: int = 190, genes: int = 14) -> np.ndarray:
    """Cells with many zeros: counts (ties everywhere), signed counts, or continuous values (no ties but zero)."""
    rng = np.random.default_rng(3)
    x = rng.poisson(1.2, (n, genes)) * (rng.random((n, genes)) < 0.6)
    x = x.astype(np.float64)
    if kind == "signed":
        x -= 1
    if kind == "continuous":
        x = np.where(x > 0, x + rng.normal(size=x.shape), 0.0)
    x[:, 3], x[:, 4], x[:, 5] = 0, 2, -1
    x[:, 6] = 0
    x[7, 6] = 1  # a single cell has anything
    return x.astype(dtype)


KINDS = [(kind, dtype) for kind in ("counts", "signed", "continuous") for dtype in (np.float32, np.float64)]


@pytest.mark.parametrize(("kind", "dtype"), [*KINDS, ("counts", np.int32), ("signed", np.int32)])
def test_rank_sum_is_scipys_on_sparse_and_dense_cells(kind, dtype):
    x = values(kind, dtype)
    control, cells = x[:60], x[60:]
    group = np.random.default_rng(0).integers(-1, 5, len(cells))
    found = de.rank_sum(cells, group, 6, control)
    for make in SPARSE:
        sparse = de.rank_sum(make(cells), group, 6, make(control))
        np.testing.assert_array_equal(sparse.p, found.p)
        np.testing.assert_array_equal(sparse.effect, found.effect)
    np.testing.assert_array_equal(de.rank_sum(sp.csr_matrix(cells), group, 6, control).p, found.p)
    for k in range(5):
        a, b = cells[group == k].astype(float), control.astype(float)
        expected = stats.mannwhitneyu(a, b, method="asymptotic")
        # Of values that are all alike scipy says 1, from 1.18 nothing.
        np.testing.assert_allclose(found.p[k], np.nan_to_num(expected.pvalue, nan=1.0), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(found.effect[k], expected.statistic / (len(a) * len(b)), rtol=1e-12)
    assert np.isnan(found.p[5]).all() and np.isnan(found.effect[5]).all()  # no cells
    assert (found.p[:5, 3] == 1).all() and (found.effect[:5, 4] == 0.5).all()


def test_rank_sum_does_not_depend_on_how_zeros_are_stored_or_cells_ordered():
    x = values("signed", np.float32)
    rng = np.random.default_rng(1)
    group = rng.integers(0, 3, 130)
    expected = de.rank_sum(x[60:], group, 3, x[:60]).p
    explicit = sp.csr_matrix(x[60:] + 9)
    explicit.data -= 9  # zeros, stored
    np.testing.assert_array_equal(de.rank_sum(explicit, group, 3, x[:60]).p, expected)
    whole = sp.csr_array(x[60:])
    pieces = (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), 2 * whole.indptr)  # two halves of every entry
    np.testing.assert_array_equal(de.rank_sum(sp.csr_array(pieces, whole.shape), group, 3, x[:60]).p, expected)
    signed_zero = np.where(x == 0, np.float32(-0.0), x)
    np.testing.assert_array_equal(de.rank_sum(signed_zero[60:], group, 3, x[:60]).p, expected)
    order = rng.permutation(130)
    np.testing.assert_array_equal(de.rank_sum(x[60:][order], group[order], 3, x[:60][::-1]).p, expected)


def test_one_cell_and_extreme_values():
    control = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    cells = np.array([[9.0], [1e30], [-1e30], [1e-40]], np.float32)
    found = de.rank_sum(cells, np.array([0, 1, 2, 3]), 4, control)
    for k, x in enumerate(cells):
        assert found.p[k, 0] == pytest.approx(stats.mannwhitneyu(x, control[:, 0], method="asymptotic").pvalue)
    np.testing.assert_allclose(found.effect[:, 0], [1, 1, 0, 0.25])


def test_p_values_are_uniform_where_nothing_differs():
    rng = np.random.default_rng(0)
    x = np.log1p(rng.poisson(1.0, (500, 400)) / rng.lognormal(0, 0.3, (500, 1))).astype(np.float32)
    p = de.rank_sum(sp.csr_matrix(x[200:]), rng.integers(0, 3, 300), 3, sp.csr_matrix(x[:200])).p
    assert stats.kstest(p.ravel(), "uniform").pvalue > 1e-3
    assert (de.benjamini_hochberg(p) < 0.05).mean() < 0.01


def test_rank_sum_refuses_what_it_cannot_test():
    x = values("counts", np.float32)
    with pytest.raises(InputError, match="no control cells"):
        de.rank_sum(x, np.zeros(len(x), int), 1, x[:0])
    with pytest.raises(InputError, match="group 3 of a cell is beyond the last one, 2"):
        de.rank_sum(x, np.full(len(x), 3), 3, x[:5])
    for bad in (np.nan, np.inf):
        spoilt = x.copy()
        spoilt[4, 8] = bad
        for make in (np.asarray, sp.csr_matrix):
            with pytest.raises(InputError, match="not finite in column 8"):
                de.rank_sum(make(spoilt), np.zeros(len(x), int), 1, x[:5])
            with pytest.raises(InputError, match="not finite in column 8"):
                de.rank_sum(x[:5], np.zeros(5, int), 1, make(spoilt))


def test_false_discovery_rates_are_scipys():
    rng = np.random.default_rng(0)
    p = rng.random((6, 40)) ** 3
    p[2, :10] = 0.01
    found = de.benjamini_hochberg(p)
    np.testing.assert_allclose(found, stats.false_discovery_control(p, axis=1))
    p[1, ::3] = np.nan
    p[4] = np.nan
    holed = de.benjamini_hochberg(p)
    np.testing.assert_array_equal(np.isnan(holed), np.isnan(p))
    there = ~np.isnan(p[1])
    np.testing.assert_allclose(holed[1, there], stats.false_discovery_control(p[1, there]))
    np.testing.assert_array_equal(holed[0], found[0])


def test_fold_changes_by_hand():
    mean = np.log1p(np.array([[2.0, 0.0, 0.0, 3.0, 1.0]]))
    control = np.log1p(np.array([[1.0, 0.0, 4.0, 0.0, 4.0]]))
    np.testing.assert_allclose(de.log_fold_change(mean, control), [[1, 0, -np.inf, np.inf, -2]])
    two = de.log_fold_change(np.repeat(mean, 2, axis=0), control)
    np.testing.assert_array_equal(two[0], two[1])
    # A predicted mean below zero has no fold change; a missing one stays missing.
    assert de.log_fold_change(np.array([[-0.1]]), np.array([[1.0]]))[0, 0] == 0
    assert np.isnan(de.log_fold_change(np.array([[np.nan]]), np.array([[1.0]]))[0, 0])


@pytest.fixture
def results():
    """Tests of 9 conditions × 60 genes; the last two conditions have no gene that responds, and three."""
    rng = np.random.default_rng(2)
    y = rng.normal(size=(9, 60))
    y[:, 5] = y[:, 6]  # ties
    y[0, 7], y[1, 8] = np.inf, -np.inf
    x = 0.6 * y + rng.normal(size=y.shape)
    x[2, 3] = np.inf
    fdr = [np.clip(rng.random(y.shape) ** 3 * np.exp(-np.abs(np.clip(t, -5, 5))), 0, 1) for t in (x, y)]
    fdr[1][7] = 0.5
    fdr[1][8, :57] = 0.5
    fdr[1][8, 57:] = 0.01
    keep = rng.random(y.shape) > 0.1
    keep[8, 57:] = True
    return de.Tested(fdr[0], x), de.Tested(fdr[1], y), keep


def test_metrics_of_responding_genes_against_plain_loops(results):
    predicted, observed, keep = results
    found = de.de_metrics(predicted, observed, keep)
    for i, k in enumerate(keep):
        x, y, px, py = predicted.lfc[i, k], observed.lfc[i, k], predicted.fdr[i, k], observed.fdr[i, k]
        real, told = py < 0.05, px < 0.05
        by_size = [np.flatnonzero(m)[np.argsort(-np.abs(v[m]), kind="stable")] for v, m in ((y, real), (x, told))]
        n, m = real.sum(), told.sum()
        expected = {
            "des": stats.spearmanr(x[real], y[real])[0] if n >= 5 else np.nan,
            "de_direction_match": np.mean(np.sign(x[real]) == np.sign(y[real])) if n else np.nan,
            "de_overlap_n": len(set(by_size[0]) & set(by_size[1][:n])) / n if n else 0,
            "de_precision": len(set(by_size[0][:m]) & set(by_size[1])) / m if m else 0,
            "de_recall": (real & told).sum() / n if n else np.nan,
            "n_de": m,
            "roc_auc": skm.roc_auc_score(real, -px) if n else np.nan,
            "pr_auc": skm.average_precision_score(real, -px) if n else np.nan,
        }
        assert set(expected) == set(found)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][i], value, atol=1e-12, err_msg=f"{name} of condition {i}")
    assert np.isnan(found["des"][7:]).all() and np.isfinite(found["de_recall"][8])


def test_areas_count_ties_as_sklearn_does(results):
    predicted, observed, keep = results
    coarse = np.round(predicted.fdr, 1)
    coarse[0] = 1e-14  # below the floor all rates are equal
    coarse[0, ::2] = 1e-12
    found = de.de_metrics(de.Tested(coarse, predicted.lfc), observed, keep)
    for i in range(1, 7):
        label, score = observed.fdr[i, keep[i]] < 0.05, -coarse[i, keep[i]]
        assert found["roc_auc"][i] == pytest.approx(skm.roc_auc_score(label, score), abs=1e-12)
        assert found["pr_auc"][i] == pytest.approx(skm.average_precision_score(label, score), abs=1e-12)
    assert found["roc_auc"][0] == pytest.approx(0.5)
    assert found["pr_auc"][0] == pytest.approx((observed.fdr[0, keep[0]] < 0.05).mean())


def test_genes_that_do_not_count_change_nothing(results):
    predicted, observed, keep = results
    expected = de.de_metrics(predicted, observed, keep)
    noise = [np.where(keep, t.lfc, 77.0) for t in results[:2]], [np.where(keep, t.fdr, 0.0) for t in results[:2]]
    found = de.de_metrics(de.Tested(noise[1][0], noise[0][0]), de.Tested(noise[1][1], noise[0][1]), keep)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_copy_is_perfect_and_effects_have_no_tests(results):
    _, observed, keep = results
    found = de.de_metrics(observed, observed, keep)
    full = (keep & (observed.fdr < 0.05)).sum(axis=1) >= 5
    for name in ("des", "de_direction_match", "de_overlap_n", "de_precision", "de_recall", "roc_auc", "pr_auc"):
        np.testing.assert_allclose(found[name][full], 1)
    effects = de.de_metrics(de.Tested(None, observed.lfc), observed, keep)
    assert set(effects) == {"des", "de_direction_match"}
    # What is the same for all genes says nothing: 0, not missing.
    flat = de.de_metrics(de.Tested(None, np.zeros_like(observed.lfc)), observed, keep)
    assert (flat["des"][full] == 0).all() and np.isnan(flat["des"][~full]).all()


def test_conditions_without_cells_are_missing(results):
    predicted, observed, keep = results
    fdr, lfc = predicted.fdr.copy(), predicted.lfc.copy()
    fdr[1], lfc[1] = np.nan, np.nan
    found = de.de_metrics(de.Tested(fdr, lfc), observed, keep)
    whole = de.de_metrics(predicted, observed, keep)
    for name, value in found.items():
        assert np.isnan(value[1])
        np.testing.assert_array_equal(np.delete(value, 1), np.delete(whole[name], 1))
    assert np.isnan(de.de_metrics(de.Tested(None, lfc), observed, keep)["des"][1])
    assert all(np.isnan(value[1]) for value in de.de_metrics(observed, de.Tested(fdr, lfc), keep).values())
    with pytest.raises(ValueError, match="need false discovery rates"):
        de.de_metrics(predicted, de.Tested(None, lfc), keep)


def test_tested_puts_the_parts_together():
    x = np.abs(values("continuous", np.float64))
    group = np.random.default_rng(0).integers(0, 3, 130)
    found = de.tested(sp.csr_matrix(x[60:]), group, 3, x[:60])
    p = stats.mannwhitneyu(x[60:][group == 1], x[:60], method="asymptotic").pvalue
    np.testing.assert_allclose(found.fdr[1], stats.false_discovery_control(np.nan_to_num(p, nan=1.0)))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, base = (np.expm1(v.mean(axis=0)) for v in (x[60:][group == 1], x[:60]))
        np.testing.assert_allclose(found.lfc[1], np.nan_to_num(np.log2(mean / base), posinf=np.inf, neginf=-np.inf))


def cells_by_batch(seed: int = 0, n: int = 360, genes: int = 50):
    """Three groups and controls in three batches; group 0 moves twenty genes by ±1.5, 1 by half, 2 none."""
    rng = np.random.default_rng(seed)
    group, batch = rng.integers(-1, 3, n), rng.integers(0, 3, n)
    x = rng.normal(size=(n, genes)) + 2 + batch[:, None] * 0.8
    move = np.zeros(genes)
    move[:10], move[10:20] = 1.5, -1.5
    x += np.where(group == 0, 1.0, np.where(group == 1, 0.5, 0.0))[:, None] * move
    x[rng.random(x.shape) < 0.15] = 0
    x[:, 49] = 1.5  # never varies
    control = group < 0
    return x[~control], group[~control], batch[~control], x[control], batch[control]


def welch_classes(x, y):
    with np.errstate(invalid="ignore", divide="ignore"):
        test = stats.ttest_ind(x, y, equal_var=False)
    p = np.nan_to_num(test.pvalue, nan=1.0)
    return np.where(stats.false_discovery_control(p) < 0.05, np.sign(np.nan_to_num(test.statistic)), 0).astype(int)


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix, sp.csc_array])
def test_classes_without_batches_are_scipys_welch_test(make):
    x, group, _, y, _ = cells_by_batch()
    found = de.deg_classes(make(x), group, 4, make(y))
    for k in range(3):
        np.testing.assert_array_equal(found[k], welch_classes(x[group == k], y))
    assert (found[0, :10] == 1).sum() > 6 and (found[0, 10:20] == -1).sum() > 6 and abs(found[2]).sum() <= 2
    assert found.dtype == np.int8 and (found[3] == 0).all()  # a group without cells
    single = de.deg_classes(make(x.astype(np.float32)), group, 3, make(y.astype(np.float32)))
    np.testing.assert_array_equal(single, found[:3])


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
def test_classes_are_a_majority_of_batches(monkeypatch):
    x, group, batch, y, control_batch = cells_by_batch(n=900)
    found = de.deg_classes(x, group, 3, y, batch, control_batch)
    for k in range(3):
        each = [welch_classes(x[(group == k) & (batch == b)], y[control_batch == b]) for b in range(3)]
        votes = np.stack(each)
        expected = ((votes == 1).sum(axis=0) > 1.5).astype(int) - ((votes == -1).sum(axis=0) > 1.5)
        np.testing.assert_array_equal(found[k], expected)
    assert np.abs(found[0]).sum() > 10
    # Numbers that tell batches apart are names; groups may be done in parts.
    renamed = np.array([17, -1, 4])
    monkeypatch.setattr("scbig.evaluation.t_test._HELD", 200)
    again = de.deg_classes(sp.csr_matrix(x), group, 3, y, renamed[batch], renamed[control_batch])
    np.testing.assert_array_equal(again, found)


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
def test_small_batches_are_tested_together():
    x, group, batch, y, control_batch = cells_by_batch(n=900)
    rng = np.random.default_rng(0)
    # Batch 0 is large; batches 1 and 2 become nine small ones of the group.
    batch = np.where(batch == 0, 0, rng.integers(1, 10, len(batch)))
    control_batch = np.where(control_batch == 0, 0, rng.integers(1, 10, len(control_batch)))
    found = de.deg_classes(x, group, 3, y, batch, control_batch, least=40)
    for k in range(3):
        two = [welch_classes(x[(group == k) & side], y[other]) for side, other in
               ((batch == 0, control_batch == 0), (batch > 0, control_batch > 0))]  # fmt: skip
        np.testing.assert_array_equal(found[k], np.where(two[0] == two[1], two[0], 0))
    # All small, and too small together with their own controls: all cells against all controls.
    few = np.concatenate([np.flatnonzero((group == 0) & (batch == b))[:2] for b in range(3)])
    alone = de.deg_classes(x[few], group[few], 1, y, batch[few], control_batch)
    np.testing.assert_array_equal(alone[0], welch_classes(x[few], y))
    # One stray cell in a batch of its own has no say beside a large one.
    stray = np.where(np.arange(len(batch)) == np.flatnonzero(group == 1)[0], 99, 0)
    with_stray = de.deg_classes(x, group, 3, y, stray, np.zeros(len(y), int))
    np.testing.assert_array_equal(with_stray[1], welch_classes(x[(group == 1) & (stray == 0)], y))


def test_a_batch_effect_is_not_a_response():
    """Cells of the group come from the bright batch, controls from both: pooled, every gene would respond."""
    rng = np.random.default_rng(0)
    batch, control_batch = np.repeat([0, 1], [20, 180]), np.repeat([0, 1], [180, 20])
    x = rng.normal(size=(200, 40)) + batch[:, None] * 2
    y = rng.normal(size=(200, 40)) + control_batch[:, None] * 2
    group = np.zeros(200, int)
    assert (de.deg_classes(x, group, 1, y) == 1).all()
    assert np.abs(de.deg_classes(x, group, 1, y, batch, control_batch)).sum() <= 2
    with pytest.raises(InputError, match="or neither"):
        de.deg_classes(x, group, 1, y, batch)


def test_values_that_never_vary():
    x, y = np.full((30, 3), 0.1), np.full((30, 3), 0.1)
    x[:, 1], x[:, 2] = 0.2, 0.05
    found = de.deg_classes(x, np.zeros(30, int), 1, y)
    np.testing.assert_array_equal(found, [[0, 1, -1]])
    np.testing.assert_array_equal(de.deg_classes(x[:1], np.zeros(1, int), 1, y), [[0, 0, 0]])


def test_macro_f1_is_sklearns():
    rng = np.random.default_rng(0)
    x, y = rng.integers(-1, 2, (8, 50)).astype(np.int8), rng.integers(-1, 2, (8, 50)).astype(np.int8)
    keep = rng.random((8, 50)) > 0.3
    x[0], y[0] = 0, 0
    x[1], y[1] = 0, np.maximum(y[1], 0)
    found = de.macro_f1(x, y, keep)
    for i, k in enumerate(keep):
        assert found[i] == pytest.approx(skm.f1_score(y[i, k], x[i, k], average="macro"))
    assert found[0] == 1 and np.isnan(de.macro_f1(x, y, np.zeros_like(keep))).all()


@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
@pytest.mark.parametrize("make", [np.asarray, sp.csr_matrix])
def test_weights_grow_with_t(make):
    x, group, _, y, _ = cells_by_batch()
    x, y = x[:, :48], y[:, :48]  # without the gene that never varies the least t is not 0
    for control in (y, None):
        found = de.de_weights(make(x), group, 4, None if control is None else make(control))
        for k in range(3):
            other = x[group != k] if control is None else control
            with np.errstate(invalid="ignore"):
                t = np.abs(np.nan_to_num(stats.ttest_ind(x[group == k], other, equal_var=False).statistic))
            scaled = ((t - t.min()) / (t.max() - t.min())) ** 2
            np.testing.assert_allclose(found[k], scaled / scaled.sum(), atol=1e-12)
        assert np.isnan(found[3]).all()
    assert found[0, :20].sum() > 0.7  # of two fifths of the genes
    np.testing.assert_allclose(de.de_weights(np.ones((6, 5)), np.zeros(6, int), 1, np.ones((4, 5))), 0.2)
    apart = np.ones((6, 5))
    apart[:, 2] = 3
    np.testing.assert_allclose(de.de_weights(apart, np.zeros(6, int), 1, np.ones((4, 5))), [[0, 0, 1, 0, 0]])


def test_weighted_error_by_hand():
    x, y = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]), np.array([[0.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    weights = np.array([[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])
    keep = np.array([[True, True, True], [True, True, False]])
    np.testing.assert_allclose(de.wmse(x, y, weights, keep), [1.25, np.nan])
    uniform = np.full((2, 3), 1 / 3)
    np.testing.assert_allclose(de.wmse(x, y, uniform, keep), [5 / 3, 1])
    np.testing.assert_allclose(de.wmse(x, y, uniform, np.array([[True, True, False]] * 2)), [0.5, 1])
