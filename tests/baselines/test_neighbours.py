"""Unseen singles from all sources: closed forms, planted worlds, noise that must give the mean, and no leaks."""

import numpy as np
import pytest

from scbig import baselines
from scbig.baselines import Embedding, TrainingData
from scbig.baselines import kernels as kn
from scbig.baselines import neighbours as nb
from scbig.errors import InputError

GENES = tuple(f"m{i}" for i in range(60))
NAMES = tuple(f"P{i:03}" for i in range(130))
TRAIN, TEST = NAMES[:100], NAMES[100:]


def data_of(effects, conditions, embeddings, contexts=None, genes=GENES) -> TrainingData:
    return TrainingData(
        genes=tuple(genes),
        conditions=tuple(conditions),
        contexts=tuple(contexts or ("all",) * len(conditions)),
        effects=np.asarray(effects, np.float32),
        n_cells=np.ones(len(conditions), np.int64),
        embeddings=embeddings,
    )


def source(vectors, mask=None) -> Embedding:
    return Embedding(NAMES, np.asarray(vectors, np.float64), np.ones(len(NAMES), bool) if mask is None else mask)


def unit(v):
    return v / np.linalg.norm(v, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def world():
    """Effects that are a smooth function of where a gene lies on a sphere, and a part that all share, with noise."""
    rng = np.random.default_rng(0)
    place = unit(rng.normal(size=(len(NAMES), 3)))
    clean = place @ rng.normal(size=(3, len(GENES))) + rng.normal(size=len(GENES))
    return place, clean, clean + 0.5 * rng.normal(size=clean.shape)


def noise(seed, dims=8):
    return source(np.random.default_rng(seed).normal(size=(len(NAMES), dims)))


def test_the_prediction_is_the_closed_form_and_that_of_scikit_learn(world):
    from sklearn.kernel_ridge import KernelRidge

    place, _, seen = world
    other = np.random.default_rng(1).normal(size=(len(NAMES), 5))
    flat = ((0.0, 1.0), (0.5, 0.5), (1.0, 1.0))
    model = baselines.fit(
        "neighbours", data_of(seen[:100], TRAIN, {"a": source(place), "b": source(other)}),
        weights={"a": 2.0, "b": 0.5}, ridge=0.7, amplitude=1.3, calibration=flat,
    )  # fmt: skip
    cosines = [unit(v) @ unit(v).T for v in (place, other)]
    k = np.exp(-2.0 * (1 - cosines[0]) - 0.5 * (1 - cosines[1]))
    mean = seen[:100].mean(axis=0)
    ridge = KernelRidge(alpha=0.7, kernel="precomputed").fit(k[:100, :100], seen[:100] - mean)
    np.testing.assert_allclose(model.predict(TEST), mean + 1.3 * ridge.predict(k[100:, :100]), atol=1e-5)


def test_leaving_one_out_is_what_fitting_without_it_gives(world):
    place, _, seen = world
    k, y = np.exp(2 * (place @ place.T - 1))[:100, :100], seen[:100]
    left = kn.left_out_one(k, 0.4)
    said = left.weights @ (y - y.mean(axis=0))
    for i in (0, 17, 99):
        rest = np.delete(np.arange(100), i)
        solved = np.linalg.solve(
            k[np.ix_(rest, rest)] + 0.4 * np.eye(99), np.c_[y[rest] - y[rest].mean(axis=0), k[rest, i]]
        )
        np.testing.assert_allclose(said[i], k[i, rest] @ solved[:, :-1], atol=1e-10)
        assert left.support[i] == pytest.approx(k[i, rest] @ solved[:, -1], abs=1e-10)


def test_correlations_are_those_of_the_predictions(world):
    _, _, seen = world
    y = seen[:100] - seen[:100].mean(axis=0)
    centred = y - y.mean(axis=1, keepdims=True)
    weights = np.random.default_rng(2).normal(size=(100, 100))
    weights[3] = 0
    found = kn.correlations(weights, centred @ centred.T)
    expected = [np.corrcoef(w @ y, row)[0, 1] if w.any() else 0.0 for w, row in zip(weights, y, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_a_planted_world_is_found_among_noise_and_the_claim_is_kept(world):
    place, clean, seen = world
    given = {"good": source(place), "noise": noise(3), "more": noise(4)}
    model = baselines.fit("neighbours", data_of(seen[:100], TRAIN, given))
    assert model.settings["weights"]["good"] == max(model.settings["weights"].values())
    x, mean = model.predict(TEST), seen[:100].mean(axis=0)
    assert np.square(x - clean[100:]).sum() < 0.1 * np.square(mean - clean[100:]).sum()
    got = np.mean([np.corrcoef(a - mean, b - mean)[0, 1] for a, b in zip(x, seen[100:], strict=True)])
    told = [model.account(c, "all") for c in TEST]
    assert {t["basis"] for t in told} == {"neighbours"}
    assert abs(np.mean([t["skill"] for t in told]) - got) < 0.12
    # Without censored entries the size is that of least squares, whatever the objective.
    same = {k: model.settings[k] for k in ("weights", "ridge", "calibration")}
    for objective in nb.OBJECTIVES:
        again = baselines.fit("neighbours", data_of(seen[:100], TRAIN, given), objective=objective, **same)
        assert again.settings["amplitude"] == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("seed", range(4))
def test_noise_does_no_harm(world, seed):
    _, clean, seen = world
    model = baselines.fit("neighbours", data_of(seen[:100], TRAIN, {"x": noise(seed + 10), "y": noise(seed + 20, 3)}))
    mean = seen[:100].mean(axis=0)
    lost = np.square(model.predict(TEST) - clean[100:]).sum() / np.square(mean - clean[100:]).sum()
    assert lost < 1.03


def test_without_any_skill_it_is_the_mean_exactly():
    rng = np.random.default_rng(5)
    signs = np.tile([[1.0], [-1.0]], (50, 1))
    effects = np.repeat(rng.normal(size=(50, 60)), 2, axis=0) * signs
    # The one neighbour of every gene does the opposite.
    place = np.eye(65)[np.repeat(np.arange(65), 2)]
    model = baselines.fit("neighbours", data_of(effects, TRAIN, {"s": source(place)}))
    np.testing.assert_allclose(model.predict(TEST), np.tile(effects.mean(axis=0), (30, 1)), atol=1e-6)
    assert model.account(TEST[0], "all") == {"basis": "mean", "skill": 0.0, "kept": 0.0}
    assert "mean training effect" in model.notes[0]
    assert (
        baselines.fit("neighbours", data_of(effects, TRAIN, {"s": source(place)}), **model.settings).notes
        == model.notes
    )


def test_rows_may_come_in_any_order_and_settings_give_the_same_model(world):
    place, _, seen = world
    given = {"good": source(place), "noise": noise(3)}
    model = baselines.fit("neighbours", data_of(seen[:100], TRAIN, given))
    order = np.random.default_rng(6).permutation(100)
    other = baselines.fit("neighbours", data_of(seen[:100][order], [TRAIN[i] for i in order], given))
    np.testing.assert_array_equal(model.predict(TEST), other.predict(TEST))
    again = baselines.fit("neighbours", data_of(seen[:100], TRAIN, given), **model.settings)
    np.testing.assert_allclose(model.predict(TEST), again.predict(TEST), atol=1e-6)
    assert model.account(TEST[1], "all") == again.account(TEST[1], "all")
    assert len(model.study) > 5 and not again.study


def test_unknown_genes_have_the_mean_and_what_is_masked_is_never_read(world):
    place, _, seen = world
    mask = np.ones(130, bool)
    mask[[5, 6, 110]] = False
    poisoned = np.where(mask[:, None], place, np.nan)
    model = baselines.fit("neighbours", data_of(seen[:100], TRAIN, {"s": source(poisoned, mask)}))
    x = model.predict([NAMES[110], "NEVER", NAMES[111]])
    assert np.isfinite(x).all()
    np.testing.assert_allclose(x[:2], np.tile(seen[:100].mean(axis=0), (2, 1)), atol=1e-5)
    assert [model.account(c, "all")["basis"] for c in (NAMES[110], NAMES[111])] == ["mean", "neighbours"]


def test_kernels_with_missing_sources_are_positive_semidefinite():
    rng = np.random.default_rng(7)
    rows = {s: {n: unit(rng.normal(size=(1, 4)))[0] for n in NAMES if rng.random() < 0.5} for s in "abc"}
    vectors = kn.stacked(rows, NAMES)
    k = kn.kernel(kn.similarities(vectors, vectors), {"a": 1.0, "b": 4.0, "c": 0.5})
    np.testing.assert_allclose(np.diag(k), 1.0)
    assert np.linalg.eigvalsh(k).min() > -1e-9


def test_measured_conditions_and_combinations(world):
    place, _, seen = world
    model = baselines.fit("neighbours", data_of(seen[:100], TRAIN, {"s": source(place)}))
    a, b, new = TRAIN[3], TRAIN[4], TEST[0]
    x = model.predict([a, f"{a}+{b}", f"{a}+{new}", new, "control"])
    np.testing.assert_allclose(x[0], seen[3], atol=1e-5)
    np.testing.assert_allclose(x[1], seen[3] + seen[4], atol=1e-5)
    np.testing.assert_allclose(x[2], x[0] + x[3], atol=1e-5)
    assert not x[4].any()
    assert model.account(a, "all") == {"basis": "measured", "skill": 1.0, "kept": 1.0}
    assert model.account(f"{a}+{new}", "all")["basis"] == "sum of measured and neighbours"


def test_what_a_gene_does_to_itself_is_not_lent_to_others(world):
    place, _, seen = world
    genes = (*GENES[:-1], TRAIN[0])
    loud = seen[:100].copy()
    loud[0, -1] = -50.0
    options = {"weights": {"s": 2.0}, "ridge": 1.0}
    x, y = (
        baselines.fit("neighbours", data_of(e, TRAIN, {"s": source(place)}, genes=genes), **options).predict(TEST)
        for e in (loud, seen[:100])
    )
    np.testing.assert_allclose(x, y, atol=1e-5)


@pytest.fixture(scope="module")
def censored(world):
    _, clean, seen = world
    small = 0.3 * (seen - clean.mean(axis=0)) + 0.1
    return np.where(np.abs(small) < 0.5, 0.0, small), small


def test_a_censored_table_is_recognised_and_its_sizes_are_ordered(world, censored):
    place, _, seen = world
    cut, _ = censored
    assert nb._threshold(cut) == pytest.approx(0.5, abs=0.02)
    assert nb._threshold(seen) == 0.0 == nb._threshold(np.zeros((3, 3)))
    data = data_of(cut[:100], TRAIN, {"s": source(place)})
    sizes = [baselines.fit("neighbours", data, objective=o).settings["amplitude"] for o in nb.OBJECTIVES]
    assert sizes[0] < sizes[1]
    whole = baselines.fit("neighbours", data, threshold=0.0)
    assert whole.settings["amplitude"] == pytest.approx(sizes[0])


def test_entries_that_were_not_recorded_are_filled_in_nearer_the_truth(world, censored):
    centre = np.array([[-2.0, -0.3, 0.0, 0.3, 2.0]])
    filled = nb._within_limits(centre, 0.5, 0.95)[0]
    assert (np.diff(filled) > 0).all() and filled[2] == 0 and np.abs(filled).max() < 0.5
    # By simulation: the mean of a normal variable of that width, given that it lies within the limits.
    from scipy.stats import norm

    draws = 0.3 + 0.5 / norm.ppf(0.975) * np.random.default_rng(8).normal(size=400_000)
    assert filled[3] == pytest.approx(draws[np.abs(draws) < 0.5].mean(), abs=0.002)
    place, _, _ = world
    cut, small = censored
    data = data_of(cut[:100], TRAIN, {"s": source(place)})
    errors = [
        np.square(baselines.fit("neighbours", data, objective="squares", impute=i).predict(TEST) - small[100:]).mean()
        for i in (True, False)
    ]
    assert errors[0] < errors[1]


def test_skill_never_falls_with_support_and_uncertain_skill_is_not_kept():
    rng = np.random.default_rng(9)
    support = rng.random(400)
    where, skill, kept = nb._calibrate(0.5 * support + 0.1 * rng.normal(size=400), support)
    assert list(where) == sorted(where) and list(skill) == sorted(skill) and len(where) > 4
    assert all(k > 0.9 for k in kept[2:])
    assert nb._calibrate(-np.abs(support), support)[2] == (0.0,) * len(nb._calibrate(-np.abs(support), support)[2])


def test_contexts_have_their_own_means(world):
    place, _, seen = world
    both = np.concatenate([seen[:100], seen[:100] + 3])
    data = data_of(both, TRAIN * 2, {"s": source(place)}, ["a"] * 100 + ["b"] * 100)
    model = baselines.fit("neighbours", data)
    x = model.predict([TEST[0]] * 3, ["a", "b", "c"])
    np.testing.assert_allclose(x[1] - x[0], 3.0, atol=1e-4)
    np.testing.assert_allclose(x[2], x[:2].mean(axis=0), atol=0.1)


def test_mistakes_are_named(world):
    place, _, seen = world
    data = data_of(seen[:100], TRAIN, {"s": source(place)})
    for options, word in (({"objective": "luck"}, "luck"), ({"weights": {"z": 1.0}}, "z"), ({"embedding": "q"}, "q")):
        with pytest.raises(InputError, match=word):
            baselines.fit("neighbours", data, **options)
    few = data_of(seen[:3], TRAIN[:3], data.embeddings)
    np.testing.assert_allclose(baselines.fit("neighbours", few).predict([TEST[0]])[0], seen[:3].mean(axis=0), atol=1e-5)
