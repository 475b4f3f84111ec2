"""Metrics against scipy, sklearn, plain loops and cell-eval, and on cases whose answer is known."""

import numpy as np
import pytest
import sklearn.metrics as skm
from scipy import stats

from scbig.evaluation import metrics as m


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(7, 60))
    x = (0.5 * y + rng.normal(size=y.shape)).astype(np.float32)
    keep = rng.random(y.shape) > 0.2
    return x, y, keep


def test_metrics_match_scipy_and_sklearn_on_the_genes_that_count(rows):
    x, y, keep = rows
    for i, k in enumerate(keep):
        a, b = x[i, k].astype(float), y[i, k]
        assert m.pearson(x, y, keep)[i] == pytest.approx(stats.pearsonr(a, b)[0], abs=1e-10)
        assert m.mse(x, y, keep)[i] == pytest.approx(skm.mean_squared_error(b, a), abs=1e-6)
        assert m.mae(x, y, keep)[i] == pytest.approx(skm.mean_absolute_error(b, a), abs=1e-6)
        assert m.r2(x, y, keep)[i] == pytest.approx(skm.r2_score(b, a), abs=1e-6)
        assert m.l2(x, y, keep)[i] == pytest.approx(np.linalg.norm(a - b), abs=1e-6)
        assert m.cosine(x, y, keep)[i] == pytest.approx(skm.pairwise.cosine_similarity([a], [b])[0, 0])
        assert m.direction_acc(x, y, keep)[i] == pytest.approx(np.mean((a > 0) == (b > 0)))
        best = np.argsort(-np.abs(b))[:20]
        top = m.top(y, keep)
        assert set(np.flatnonzero(top[i])) == set(np.flatnonzero(k)[best])
        assert m.pearson(x, y, top)[i] == pytest.approx(stats.pearsonr(a[best], b[best])[0], abs=1e-10)


def test_values_of_genes_that_do_not_count_change_nothing(rows):
    x, y, keep = rows
    wild = np.where(keep, x, 1e6).astype(np.float64)
    for f in (m.pearson, m.mse, m.mae, m.r2, m.l2, m.cosine, m.direction_acc):
        np.testing.assert_allclose(f(wild, y, keep), f(x.astype(np.float64), y, keep))
    for kind in ("l1", "l2", "cosine"):
        shown = m.distances(wild, y, keep, kind)
        np.testing.assert_allclose(shown, m.distances(x.astype(np.float64), y, keep, kind))


def test_order_of_genes_and_conditions_does_not_matter(rows):
    x, y, keep = rows
    genes, conditions = np.random.default_rng(1).permutation(60), np.random.default_rng(2).permutation(7)
    for f in (m.pearson, m.mse, m.mae, m.r2, m.l2, m.cosine, m.direction_acc):
        np.testing.assert_allclose(f(x[:, genes], y[:, genes], keep[:, genes]), f(x, y, keep))
    for kind in ("l1", "l2", "cosine"):
        turned = m.pds(x[conditions], y[conditions], keep[conditions], kind)
        np.testing.assert_allclose(turned, m.pds(x, y, keep, kind)[conditions])


def test_constants():
    y = np.random.default_rng(0).normal(size=(2, 30))
    flat, keep = np.full((2, 30), 0.3), np.ones((2, 30), bool)
    assert list(m.pearson(flat, y, keep)) == [0, 0]
    assert np.isnan(m.pearson(y, flat, keep)).all() and np.isnan(m.r2(y, flat, keep)).all()
    assert list(m.cosine(np.zeros_like(y), y, keep)) == [0, 0]
    assert list(m.direction_acc(np.zeros_like(y), y, keep)) == [0, 0]
    assert np.isnan(m.direction_acc(y, np.zeros_like(y), keep)).all()
    few = np.arange(30)[None] < np.array([[5], [30]])
    assert list(m.top(y, few).sum(axis=1)) == [5, 20]


def test_distances_match_sklearn(rows):
    x, y, keep = rows
    for kind, name in (("l1", "l1"), ("l2", "l2"), ("cosine", "cosine")):
        shown = m.distances(x, y, keep, kind)
        for i, k in enumerate(keep):
            np.testing.assert_allclose(shown[i], skm.pairwise_distances(x[i : i + 1, k], y[:, k], name)[0], rtol=1e-5)


def test_rank_by_hand():
    y = np.array([[0.0, 0.0], [1.0, 0.0], [5.0, 0.0]])
    x = np.array([[0.1, 0.0], [4.9, 0.0], [4.8, 0.0]])
    keep = np.ones((3, 2), bool)
    np.testing.assert_allclose(m.pds(x, y, keep, "l2"), [1, 1 - 1 / 3, 1])
    np.testing.assert_allclose(m.centroid_acc(x, y, keep), [1, 0.5, 1])


def test_chance_of_a_prediction_that_tells_nothing():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(50, 80))
    keep = np.ones_like(y, bool)
    one = np.tile(rng.normal(size=80), (50, 1))
    assert m.chance_pds(50) == pytest.approx(0.51)
    for kind in ("l1", "l2", "cosine"):
        # The same answer to all conditions meets every rank once: chance, exactly.
        assert m.pds(one, y, keep, kind).mean() == pytest.approx(m.chance_pds(50))


def test_ties_are_random_and_seeded():
    y = np.random.default_rng(0).normal(size=(40, 10))
    nothing, keep = np.zeros_like(y), np.ones_like(y, bool)
    # Zero has the same cosine distance to everything.
    means = [m.pds(nothing, y, keep, "cosine", seed).mean() for seed in range(60)]
    assert np.mean(means) == pytest.approx(m.chance_pds(40), abs=0.02)
    assert np.std(means) > 0.01
    again = m.pds(nothing, y, keep, "cosine", 3)
    np.testing.assert_array_equal(again, m.pds(nothing, y, keep, "cosine", 3))
    assert set(m.ranks(np.zeros((3, 3)), 1)) <= {0.0, 1.0, 2.0}


def test_every_metric_names_its_direction():
    for metric in m.METRICS.values():
        best = {"higher": [1.0], "lower": [0.0], "target": [1.0], "count": []}[metric.kind]
        assert metric.text and (metric.best in best or metric.kind == "count")
        assert metric.halves in ("correlation", "square", "root", "matched")
    assert m.METRICS["l2"].badness(np.array([2.0])) > m.METRICS["l2"].badness(np.array([1.0]))
    assert m.METRICS["pds_l2"].badness(np.array([0.4])) > m.METRICS["pds_l2"].badness(np.array([0.9]))
    twice, half = (m.METRICS["variance_ratio"].badness(np.array([x])) for x in (2.0, 0.5))
    assert twice == pytest.approx(half) and twice > m.METRICS["variance_ratio"].badness(np.array([1.1]))


@pytest.mark.filterwarnings("ignore")
def test_shared_definitions_agree_with_cell_eval():
    """cell-eval leaves out only a gene of the condition's own name, and only from ``pds``; so do we here."""
    impl = pytest.importorskip("cell_eval.metrics._anndata")
    types = pytest.importorskip("cell_eval._types")
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(7)
    genes = [f"g{i}" for i in range(40)]
    conditions = ["g3", "g5", "g8", "other", "g1"]
    labels = np.repeat(["control", *conditions], 30)

    def cells(noise):
        shift = {c: np.random.default_rng(j).normal(0, 0.4, 40) for j, c in enumerate(conditions)}
        base = rng.gamma(2.0, 0.4, size=(len(labels), 40)) + 2.0
        move = np.stack([shift.get(c, np.zeros(40)) for c in labels])
        x = (base + move * (1 - noise) + rng.normal(0, noise, (len(labels), 40))).astype(np.float64)
        obs = pd.DataFrame({"condition": labels}, index=[str(i) for i in range(len(labels))])
        return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))

    real, predicted = cells(0.0), cells(0.5)
    pair = types.PerturbationAnndataPair(real=real, pred=predicted, pert_col="condition", control_pert="control")
    means = {
        side: np.stack([a.X[labels == c].mean(axis=0) for c in ("control", *conditions)])
        for side, a in (("real", real), ("predicted", predicted))
    }
    # cell-eval takes each side's effect to that side's own controls.
    x, y = means["predicted"][1:] - means["predicted"][0], means["real"][1:] - means["real"][0]
    everything = np.ones_like(x, bool)
    without = np.array([[g != c for g in genes] for c in conditions])
    ours = {
        "pearson_delta": m.pearson(x, y, everything),
        "mse": m.mse(means["predicted"][1:], means["real"][1:], everything),
        "mae": m.mae(means["predicted"][1:], means["real"][1:], everything),
    }
    for name, values in ours.items():
        theirs = getattr(impl, name)(pair)
        np.testing.assert_allclose(values, [theirs[c] for c in conditions], atol=1e-5)
    for kind in ("l1", "l2", "cosine"):
        theirs = impl.discrimination_score(pair, metric=kind)
        np.testing.assert_allclose(m.pds(x, y, without, kind), [theirs[c] for c in conditions], atol=1e-5)
