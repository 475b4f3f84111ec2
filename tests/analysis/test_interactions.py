"""Interaction scores against known answers, the null against noise alone, and what is learned from measured pairs."""

from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares
from scipy.stats import kstest

from scbig.analysis import interaction_model, interaction_null, interaction_scores, interactions
from scbig.analysis.interaction_predicted import shifted
from scbig.baselines import TrainingData
from scbig.errors import InputError

GENES = 200


@pytest.fixture
def singles():
    rng = np.random.default_rng(0)
    return rng.normal(size=GENES), rng.normal(size=GENES)


def test_an_exact_sum(singles):
    a, b = singles
    found = interactions.score(a, b, a + b)
    assert found["magnitude"] == pytest.approx(np.sqrt(2), abs=1e-6)
    assert found["departure"] == pytest.approx(0, abs=1e-6)
    assert found["fit"] == pytest.approx(1)
    assert found["dominance"] == pytest.approx(0, abs=1e-6)
    assert found["slope"] == pytest.approx(1)
    assert found["equality"] > 0.8


@pytest.mark.parametrize(
    ("double", "kind"),
    [
        (lambda a, b, c: 1.5 * (a + b), "synergy"),
        (lambda a, b, c: 0.5 * (a + b), "suppression"),
        (lambda a, b, c: a, "epistasis"),
        (lambda a, b, c: b, "epistasis"),
        (lambda a, b, c: 2 * c, "neomorphic"),
    ],
)
def test_a_planted_kind_is_named(singles, double, kind):
    a, b = singles
    other = np.random.default_rng(1).normal(size=GENES)
    assert interactions.score(a, b, double(a, b, other))["nearest"] == kind


def test_swapping_the_genes_swaps_only_the_coefficients(singles):
    a, b = singles
    ab = 1.2 * a + 0.4 * b + np.random.default_rng(2).normal(size=GENES)
    one, two = interactions.score(a, b, ab), interactions.score(b, a, ab)
    assert one["c1"] == pytest.approx(two["c2"], rel=1e-4)
    for name in set(one) - {"c1", "c2", "nearest"}:
        assert one[name] == pytest.approx(two[name], rel=1e-4), name
    assert one["nearest"] == two["nearest"]


def test_outliers_hardly_move_the_robust_fit(singles):
    x = np.stack(singles, axis=1)
    y = x @ [1.0, 0.5]
    y[:10] += 50.0
    plain = np.linalg.lstsq(x, y, rcond=None)[0]
    for method in ("huber", "theil-sen"):
        found = np.array(interaction_scores.robust_fit(x, y, method))
        assert np.abs(found - [1.0, 0.5]).max() < 0.1 * np.abs(plain - [1.0, 0.5]).max()
    with pytest.raises(InputError, match="lasso"):
        interaction_scores.robust_fit(x, y, "lasso")


def test_the_robust_fit_is_at_its_optimum(singles):
    x = np.stack(singles, axis=1)
    y = x @ [1.0, 0.5] + np.random.default_rng(3).standard_t(2, GENES)
    found = interaction_scores.robust_fit(x, y)
    size = np.sqrt(np.square(x).mean())
    rest = (y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) / size
    scale = 1.345 * 1.4826 * np.median(np.abs(rest - np.median(rest))) * size
    again = least_squares(lambda c: x @ c - y, [0.0, 0.0], loss="huber", f_scale=scale).x
    assert found == pytest.approx(again, rel=1e-3)


def test_distance_correlation_against_its_definition():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=30), rng.normal(size=(30, 2))

    def covariance(p, q):
        n = len(p)
        p, q = (np.array([[np.linalg.norm(np.atleast_1d(u - v)) for v in s] for u in s]) for s in (p, q))
        # Székely, Rizzo and Bakirov: S1 + S2 − 2 S3.
        return (p * q).mean() + p.mean() * q.mean() - 2 * (p @ q).sum() / n**3

    want = np.sqrt(covariance(x, y) / np.sqrt(covariance(x, x) * covariance(y, y)))
    assert interaction_scores.distance_correlation(x, y) == pytest.approx(want)
    assert interaction_scores.distance_correlation(x, 3 - 2 * x) == pytest.approx(1)
    assert interaction_scores.distance_correlation(x, np.zeros(30)) == 0


def test_noise_in_the_singles_does_not_shrink_corrected_coefficients(singles):
    rng = np.random.default_rng(5)
    a, b = (np.tile(each, 50) for each in singles)
    noisy = np.stack([a, b, a + b]) + 0.7 * rng.normal(size=(3, len(a)))
    gram = noisy @ noisy.T
    plain = interaction_scores.geometry(gram)
    found = interaction_scores.geometry(gram - 0.49 * len(a) * np.eye(3))
    assert float(plain["magnitude"]) < 1.1
    assert float(found["magnitude"]) == pytest.approx(np.sqrt(2), abs=0.05)
    assert float(found["relative"]) < 0.12


def test_refusals(singles):
    a, b = singles
    with pytest.raises(InputError, match="three at least"):
        interactions.score(a[:2], b[:2], a[:2])
    with pytest.raises(InputError, match="not finite"):
        interactions.score(a, b, np.full(GENES, np.nan))


def cells(effects, n=60, genes=80, seed=0, controls=300):
    """Cells around means, with a programme shared by genes; ``effects`` maps condition to effect."""
    rng = np.random.default_rng(seed)
    names, parts = [], []
    base, programme = rng.uniform(2, 3, genes), 0.3 * rng.normal(size=genes)
    for name, effect in effects.items():
        size = controls if name == "control" else n
        x = base + effect + rng.normal(size=(size, genes)) * 0.5 + rng.normal(size=(size, 1)) * programme
        names += [name] * size
        parts.append(x)
    obs = pd.DataFrame({"condition": names}, index=[f"c{i}" for i in range(len(names))])
    var = pd.DataFrame(index=[f"G{i}" for i in range(genes)])
    return ad.AnnData(np.concatenate(parts).astype(np.float32), obs=obs, var=var)


def test_kinds_are_called_from_cells():
    rng = np.random.default_rng(6)
    e = {f"G{i}": np.r_[np.zeros(10), rng.normal(size=70)] for i in range(8)}
    new = np.r_[np.zeros(10), rng.normal(size=70)]
    e |= {
        "G0+G1": e["G0"] + e["G1"],
        "G2+G3": 1.5 * (e["G2"] + e["G3"]),
        "G4+G5": e["G4"],
        "G6+G7": 2 * new,
        "G0+G2": 0.5 * (e["G0"] + e["G2"]),
    }
    found = interactions.score_cells(cells({"control": np.zeros(80), **e})).set_index("condition")
    kinds = {"G2+G3": "synergy", "G4+G5": "epistasis", "G6+G7": "neomorphic", "G0+G2": "suppression"}
    assert found["kind"].to_dict() == {**kinds, "G0+G1": interactions.UNTOLD}
    row = found.loc["G0+G1"]
    assert row["magnitude_low"] < np.sqrt(2) < row["magnitude_high"]
    assert 0 < row["could_tell"] < 0.5
    assert found.loc["G2+G3", "slope_low"] < 1.5 < found.loc["G2+G3", "slope_high"]


def test_perturbed_genes_do_not_count():
    own = {"G0": np.eye(80)[0] * 5, "G1": np.eye(80)[1] * 5}
    rng = np.random.default_rng(7)
    effect = {g: x + np.r_[0, 0, 0.5 * rng.normal(size=78)] for g, x in own.items()}
    both = effect["G0"] + effect["G1"] - 4 * np.eye(80)[0]
    made = {"control": np.zeros(80), **effect}
    row = interactions.score_cells(cells({**made, "G0+G1": both})).iloc[0]
    assert not row["departs"]
    elsewhere = effect["G0"] + effect["G1"] - 4 * np.eye(80)[5]
    assert interactions.score_cells(cells({**made, "G0+G1": elsewhere})).iloc[0]["departs"]


def test_under_the_null_p_is_uniform():
    rng = np.random.default_rng(8)
    singles = {f"G{i}": 0.3 * rng.normal(size=80) for i in range(14)}
    pairs = {f"G{i}+G{j}": singles[f"G{i}"] + singles[f"G{j}"] for i in range(14) for j in range(i + 1, 14)}
    p = []
    for seed in range(3):  # pairs share singles and controls: fresh cells make them less alike
        made = cells({"control": np.zeros(80), **singles, **pairs}, n=40, seed=seed)
        p.append(interactions.score_cells(made, seed=seed)["p"])
    p = np.concatenate(p)
    assert len(p) == 273
    assert np.mean(p < 0.05) < 0.11
    assert np.mean(p < 0.01) < 0.04
    assert kstest(p, "uniform").statistic < 0.15


def test_the_order_of_genes_and_what_else_is_scored_do_not_matter():
    rng = np.random.default_rng(9)
    e = {f"G{i}": rng.normal(size=80) for i in range(3)}
    e |= {"G0+G1": e["G0"] + e["G1"], "G1+G2": e["G1"]}
    made = cells({"control": np.zeros(80), **e})
    every = interactions.score_cells(made).set_index("condition").loc["G0+G1"]
    alone = interactions.score_cells(made, ["G1+G0"]).set_index("condition").loc["G0+G1"]
    for name in ("p", "c1", "c1_low", "magnitude_high", "fit"):
        assert every[name] == alone[name], name


def test_what_cannot_be_scored_is_refused_or_said():
    e = {"control": np.zeros(80), "G0": np.ones(80), "G1": np.ones(80), "G0+G1": np.ones(80)}
    made = cells(e)
    with pytest.raises(InputError, match=r"G0\+G9"):
        interactions.score_cells(made, ["G0+G9"])
    with pytest.raises(InputError, match="draws=5"):
        interactions.score_cells(made, draws=5)
    with pytest.raises(InputError, match="no control cells"):
        interactions.score_cells(made[(made.obs["condition"] != "control").to_numpy()].copy())
    few = made[np.r_[0:300, 300:360, 360:420, 420:425]].copy()
    row = interactions.score_cells(few).iloc[0]
    assert row["kind"] == "not judged"
    assert row["cells_ab"] == 5
    assert not row["departs"]


def table(rng, noise):
    e = {f"G{i}": np.r_[np.zeros(10), rng.normal(size=190)] for i in range(6)}
    e |= {"G0+G1": e["G0"] + e["G1"], "G2+G3": 1.6 * (e["G2"] + e["G3"]), "G4+G5": e["G5"]}
    x = np.stack(list(e.values())) + noise * rng.normal(size=(9, 200))
    var = pd.DataFrame(index=[f"G{i}" for i in range(200)])
    return ad.AnnData(x, obs=pd.DataFrame({"condition": list(e)}, index=list(e)), var=var)


def test_effects_are_scored_with_and_without_noise():
    effects = table(np.random.default_rng(10), 0.1)
    bare = interactions.score_effects(effects).set_index("condition")
    assert set(bare["kind"]) == {"not judged"}
    found = interactions.score_effects(effects, noise=np.full((9, 200), 0.1)).set_index("condition")
    assert found["kind"].to_dict() == {"G0+G1": interactions.UNTOLD, "G2+G3": "synergy", "G4+G5": "epistasis"}
    assert found["robust_magnitude"].to_dict() == pytest.approx(bare["robust_magnitude"].to_dict())
    with pytest.raises(InputError, match=r"\(2, 200\)"):
        interactions.score_effects(effects, noise=np.ones((2, 200)))
    names = [*effects.obs["condition"], "G0"]
    obs = pd.DataFrame({"condition": names}, index=[str(i) for i in range(10)])
    twice = ad.AnnData(np.vstack([effects.X, effects.X[:1]]), obs=obs, var=effects.var)
    with pytest.raises(InputError, match="several rows"):
        interactions.score_effects(twice)


def test_residual_noise_finds_the_noise():
    rng = np.random.default_rng(11)
    scale = np.exp(rng.normal(0, 0.5, 60))[:, None] * np.exp(rng.normal(0, 0.5, 400))
    x = rng.normal(size=(60, 5)) @ rng.normal(size=(5, 400)) * 3 + scale * rng.normal(size=(60, 400))
    found = interactions.residual_noise(x, rank=5)
    assert np.corrcoef(np.log(found).ravel(), np.log(scale).ravel())[0, 1] > 0.9
    assert np.sqrt(np.square(found).mean() / np.square(scale).mean()) == pytest.approx(1, abs=0.1)


def test_the_tail_of_a_sum_of_squares():
    rng = np.random.default_rng(12)
    draws = np.square(rng.normal(size=(4000, 30))).sum(axis=1)
    from scipy.stats import chi2

    for value in (30.0, 45.0, 60.0):
        assert np.log(interaction_null.tail(value, draws)[0]) == pytest.approx(np.log(chi2.sf(value, 30)), rel=0.1)


def test_direct_actions_are_told_from_indirect_ones():
    rng = np.random.default_rng(13)
    wiring = np.zeros((6, 6))
    wiring[0, 1], wiring[1, 2], wiring[3, 4] = 0.6, -0.5, 0.5
    impulse = np.tile(np.eye(6), (6, 1)) * rng.uniform(0.8, 1.2, (36, 1))
    responses = impulse @ np.linalg.inv(np.eye(6) - wiring) + 0.01 * rng.normal(size=(36, 6))
    found = interaction_model.direct_actions(responses, [{i % 6} for i in range(36)])
    assert np.abs(found - wiring).max() < 0.1  # the indirect action of 0 on 2 among them


def wired(rng, n_genes=120, n_modules=12):
    """Singles of a chain of modules, two genes for each; pairs depart where one module acts on the other."""
    module = np.arange(n_genes) % n_modules
    wiring = np.diag(np.full(n_modules - 1, 0.6), 1)
    response = np.linalg.inv(np.eye(n_modules) - wiring)
    loading = np.eye(n_modules)[module].T
    single = {f"G{i:03d}": response[module[i]] @ loading for i in range(2 * n_modules)}
    names, effects, departs = list(single), list(single.values()), {}
    for i, j in combinations(range(n_modules), 2):
        if j > i + 1 and rng.random() > 0.6:
            continue
        a, b = f"G{i:03d}", f"G{j:03d}"
        near = j == i + 1
        names.append(f"{a}+{b}")
        effects.append(single[b] if near else single[a] + single[b])
        departs[f"{a}+{b}"] = (0.6 if near else 0.1) + 0.05 * rng.random()
    x = (np.stack(effects) + 0.05 * rng.normal(size=(len(effects), n_genes))).astype(np.float32)
    genes = tuple(f"G{i:03d}" for i in range(n_genes))
    data = TrainingData(genes, tuple(names), ("all",) * len(names), x, np.full(len(names), 50))
    return data, departs, dict(zip(genes, module.tolist(), strict=True))


def test_strong_departures_are_learned_from_measured_pairs():
    data, departs, modules = wired(np.random.default_rng(14))
    model = interaction_model.fit(departs, data, modules, "all")
    near = {p for p, v in departs.items() if v > 0.5}
    told = model.left_out
    assert min(np.mean([told[p] for p in near]) - np.mean([v for p, v in told.items() if p not in near]), 1) > 0.2
    again = model.probability(["G012+G013", "G012+G016"])  # the other genes of the modules, never paired
    assert again["probability"].iloc[0] > again["probability"].iloc[1]
    assert (again["low"] <= again["probability"]).all()
    assert (again["probability"] <= again["high"]).all()
    with pytest.raises(InputError, match="G099"):
        model.probability(["G000+G099"])


def test_without_a_rule_probabilities_stay_near_one_half():
    data, departs, modules = wired(np.random.default_rng(15))
    names = list(departs)
    shuffled = dict(zip(names, np.random.default_rng(16).random(len(names)), strict=True))
    model = interaction_model.fit(shuffled, data, modules, "all")
    # Not claimed to know anything. (Where there is no rule, left-out predictions lean below one half: leaving a pair of
    # one class out tips what remains towards the other.)
    assert model.auroc_low < 0.5
    assert 0.2 < model.brier < 0.3
    assert np.abs(np.array(list(model.left_out.values())) - 0.5).max() < 0.4


def test_too_few_pairs_teach_nothing():
    data, departs, modules = wired(np.random.default_rng(17))
    few = dict(list(departs.items())[:9])
    with pytest.raises(InputError, match="9 measured pairs"):
        interaction_model.fit(few, data, modules, "all")


def test_intervals_hold_what_was_seen_beyond():
    told, seen = np.zeros(20), np.linspace(0, 1, 20)
    low, middle, high = shifted(np.array([1.0]), told, seen)
    assert low[0] <= 1.05
    assert middle[0] == pytest.approx(1.5)
    assert high[0] >= 1.95
    assert np.isnan(shifted(np.array([1.0]), told[:8], seen[:8])).all()


def test_a_run_is_reported(tiny_run):
    from matplotlib.figure import Figure

    from scbig import analysis
    from scbig.analysis import Ask

    view = analysis.load(tiny_run)
    found = interactions.report(view, Ask(draws=30))
    assert set(found.tables) >= {"pairs", "modules"}
    pairs = found.tables["pairs"]
    assert len(pairs) == 8
    assert (pairs["q"].dropna().diff().dropna() >= 0).all()
    for figure in found.figures:
        assert isinstance(figure.draw(), Figure)
    tested = interactions.pairs_of(view.obs["condition"].astype(str))[:2]
    told = interactions.predicted(view, tested)
    assert told["condition"].tolist() == tested
    with pytest.raises(InputError, match="elsewhere"):
        interactions.predicted(view, tested, "elsewhere")
    with pytest.raises(InputError, match="pairs of two"):
        interactions.predicted(view, [tested[0].split("+")[0]])


@pytest.mark.realdata
def test_known_interactions_of_norman(shared):
    from scbig import data

    effects = data.effects_table(shared / "data" / "norman2019_effects.h5ad")
    found = interactions.score_effects(effects, ["CBL+CNN1", "DUSP9+ETS2"]).set_index("condition")
    assert found.loc["CBL+CNN1", "robust_magnitude"] > found.loc["DUSP9+ETS2", "robust_magnitude"]
    assert found.loc["DUSP9+ETS2", "robust_dominance"] > found.loc["CBL+CNN1", "robust_dominance"]
