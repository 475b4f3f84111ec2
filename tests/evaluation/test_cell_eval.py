"""The same numbers as cell-eval where definitions are shared, and the differences where they are not."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbig.data.conditions import genes_of
from scbig.evaluation import expression as de
from scbig.evaluation import metrics as m
from scbig.evaluation.calibration import calibrate

pytestmark = [  # of cell-eval's own under newer libraries
    pytest.mark.filterwarnings("ignore:the string cache has been replaced:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Constructing a Categorical with a dtype and values"),
]

GENES = [f"g{i}" for i in range(60)]
SINGLES = [f"g{i}" for i in range(7)]
CONDITIONS = sorted([*SINGLES, "g0+g1"])
LABELS = np.repeat(["control", *CONDITIONS], [150, *[45] * len(CONDITIONS)])
SILENT, LOST, GAINED = 57, 58, 59  # genes that no cell, no perturbed cell, no control cell expresses


def screen(strength: float, seed: int, shift: float = 0.0) -> np.ndarray:
    """Log-expression; effects on some twenty genes a condition, the last condition without any."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(0).normal(0.0, 0.7, len(GENES))
    rate = np.tile(base, (len(LABELS), 1))
    for j, condition in enumerate(CONDITIONS[:-1]):
        which = np.random.default_rng(j + 1)
        effect = which.normal(0, 1.0, len(GENES)) * (which.random(len(GENES)) < 0.35)
        rate[condition == LABELS] += strength * effect
    depth = rng.lognormal(0, 0.3, (len(LABELS), 1))
    counts = rng.poisson(np.exp(rate) * depth).astype(np.float64)
    control = LABELS == "control"
    counts[:, SILENT] = 0
    counts[:, LOST] = np.where(control, rng.poisson(1.0, len(LABELS)), 0)
    counts[:, GAINED] = np.where(control, 0, rng.poisson(1.0, len(LABELS)))
    return np.log1p(counts / depth) + shift


def table(x: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame({"condition": LABELS}, index=[f"c{i}" for i in range(len(x))])
    return ad.AnnData(sp.csr_matrix(x), obs=obs, var=pd.DataFrame(index=GENES))


def theirs(predicted: np.ndarray, real: np.ndarray, folder, only: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """cell-eval's numbers by metric, conditions in order; all but one that clusters, or those named."""
    import polars as pl
    from cell_eval import MetricsEvaluator
    from cell_eval.metrics import metrics_registry

    left_out = [name for name in metrics_registry.list_metrics() if only and name not in only]
    evaluator = MetricsEvaluator(
        table(predicted), table(real), control_pert="control", pert_col="condition", num_threads=1,
        outdir=str(folder), skip_de=bool(only) and not any(name.startswith("de_") for name in only),
    )  # fmt: skip
    found, _ = evaluator.compute(skip_metrics=[*left_out, "clustering_agreement"], write_csv=False, break_on_error=True)
    assert sorted(found["perturbation"]) == CONDITIONS
    found = found.sort("perturbation").drop("perturbation").cast(pl.Float64)
    return {name: found[name].to_numpy() for name in found.columns}


def ours(predicted: np.ndarray, real: np.ndarray, keep: np.ndarray, ranked: np.ndarray) -> dict[str, np.ndarray]:
    """Ours under cell-eval's names. Each side's effects are to its own controls, as there."""
    group = pd.Categorical(LABELS, categories=CONDITIONS).codes.astype(int)
    mean, control, tests = [], [], []
    for x in (predicted, real):
        x = sp.csr_matrix(x)
        mean.append(np.stack([np.asarray(x[group == k].mean(axis=0)).ravel() for k in range(len(CONDITIONS))]))
        control.append(np.asarray(x[group < 0].mean(axis=0)).ravel())
        tests.append(de.tested(x, group, len(CONDITIONS), x[group < 0]))
    x, y = mean[0] - control[0], mean[1] - control[1]
    out = de.de_metrics(*tests, keep)
    names = {
        "des": "de_spearman_lfc_sig", "de_overlap_n": "overlap_at_N", "de_precision": "precision_at_N",
        "de_recall": "de_sig_genes_recall", "n_de": "de_nsig_counts_pred",
    }  # fmt: skip
    out = {names.get(k, k): v for k, v in out.items()}
    return out | {
        "de_nsig_counts_real": ((tests[1].fdr < de.FDR) & keep).sum(axis=1),
        "pearson_delta": m.pearson(x, y, keep),
        "mse": m.mse(mean[0], mean[1], keep),
        "mae": m.mae(mean[0], mean[1], keep),
        "mse_delta": m.mse(x, y, keep),
        "mae_delta": m.mae(x, y, keep),
        **{f"discrimination_score_{kind}": m.pds(x, y, ranked, kind) for kind in ("l1", "l2", "cosine")},
    }


EVERY = np.ones((len(CONDITIONS), len(GENES)), bool)
OWN = np.array([[g != c for g in GENES] for c in CONDITIONS])
WITHOUT = np.array([[g not in genes_of(c) for g in GENES] for c in CONDITIONS])
COMBINATION = CONDITIONS.index("g0+g1")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    real, predicted = screen(1.0, 1), screen(0.6, 2)
    return real, predicted, theirs(predicted, real, tmp_path_factory.mktemp("cell_eval"))


def test_shared_definitions_give_the_same_numbers(both):
    real, predicted, shown = both
    found = ours(predicted, real, EVERY, OWN)
    for name, values in found.items():
        expected = shown[name]
        if name == "de_spearman_lfc_sig":
            # Theirs is defined from two genes on, ours from five.
            few = found["de_nsig_counts_real"] < 5
            assert few.sum() == 1 and np.isnan(values[few]).all()
            values, expected = values[~few], expected[~few]
        np.testing.assert_allclose(values, expected, atol=1e-5, err_msg=name)
    # The comparison says something: neither all nor nothing is found.
    assert 5 < found["de_nsig_counts_real"].max() < 50 and 0.2 < np.nanmean(found["overlap_at_N"]) < 0.95
    assert np.isnan(found["de_sig_genes_recall"]).any() or found["de_nsig_counts_real"].min() > 0


def test_nothing_shared_is_left_out(both):
    """Whatever else cell-eval computes is one number per file, a cut-off of one of these, or a difference below."""
    real, predicted, shown = both
    cut = {f"{kind}_at_{n}" for kind in ("overlap", "precision") for n in (50, 100, 200, 500)}
    assert set(shown) - set(ours(predicted, real, EVERY, OWN)) == cut | {"pearson_edistance", "de_spearman_sig"}


def test_genes_of_combinations_count_there_and_not_here(both, tmp_path):
    """A prediction that knows the perturbed genes of the combination and nothing else."""
    real, _, _ = both
    predicted = screen(0.0, 5)
    at = [GENES.index(g) for g in ("g0", "g1")]
    wild = real.copy()
    for x in (wild, predicted):
        x[np.ix_(LABELS == "g0+g1", at)] = 10.0
    names = ("pearson_delta", "de_nsig_counts", "discrimination_score_l1")
    there = theirs(predicted, wild, tmp_path, names)
    here = ours(predicted, wild, WITHOUT, WITHOUT)
    assert there["pearson_delta"][COMBINATION] > 0.7 > 0.4 > here["pearson_delta"][COMBINATION]
    assert there["de_nsig_counts_pred"][COMBINATION] >= here["de_nsig_counts_pred"][COMBINATION] + 2
    assert there["discrimination_score_l1"][COMBINATION] == 1 > here["discrimination_score_l1"][COMBINATION]


def test_ties_go_by_the_place_in_the_file_there_and_by_lot_here(both, tmp_path):
    """No effect at all is as far from one condition as from any other, in cosine."""
    real, _, _ = both
    name = "discrimination_score_cosine"
    there = theirs(np.full_like(real, 0.5), real, tmp_path, (name,))[name]
    # One condition is found for certain and another missed for certain, though the prediction tells nothing apart.
    n = len(CONDITIONS)
    np.testing.assert_allclose(np.sort(there), np.arange(1, n + 1) / n)
    zero, y = np.zeros(EVERY.shape), np.random.default_rng(0).normal(size=EVERY.shape)
    lots = np.array([m.pds(zero, y, EVERY, "cosine", seed) for seed in range(300)])
    np.testing.assert_allclose(lots.mean(axis=0), m.chance_pds(n), atol=0.07)


def test_own_controls_hide_a_shift_there(both, tmp_path):
    """Every predicted cell, controls too, is off by the same amount. Against the real controls that is an error."""
    real, _, _ = both
    shifted = real.copy()
    shifted[:, 10:30] += np.linspace(0.5, 1.5, 20)
    there = theirs(shifted, real, tmp_path, ("pearson_delta", "de_nsig_counts"))
    np.testing.assert_allclose(there["pearson_delta"], 1, atol=1e-9)
    np.testing.assert_allclose(there["de_nsig_counts_pred"], there["de_nsig_counts_real"], atol=1e-9)
    group = pd.Categorical(LABELS, categories=CONDITIONS).codes.astype(int)
    base = real[group < 0]
    mean = {k: np.stack([x[group == i].mean(axis=0) for i in range(8)]) for k, x in (("x", shifted), ("y", real))}
    here = m.pearson(mean["x"] - base.mean(axis=0), mean["y"] - base.mean(axis=0), EVERY)
    assert here.max() < 0.9
    tested = de.tested(shifted, group, 8, base)
    assert ((tested.fdr < de.FDR).sum(axis=1) > there["de_nsig_counts_real"] + 5).all()


def test_a_prediction_that_says_nothing_has_no_rank_correlation_there_and_zero_here():
    import polars as pl
    from cell_eval._types import initialize_de_comparison
    from cell_eval.metrics._de import DESpearmanLFC

    lfc = np.linspace(-1, 1, 9)
    frame = {"target": "A", "feature": GENES[:9], "p_value": 0.001, "fdr": 0.001}
    sides = [pl.DataFrame({**frame, "log2_fold_change": change}) for change in (lfc, 0 * lfc)]
    assert not np.isfinite(DESpearmanLFC()(initialize_de_comparison(*sides))["A"])
    every = np.ones((1, 9), bool)
    assert de.des(0 * lfc[None], lfc[None], every, every) == [0]


def test_scores_below_the_naive_answer_are_clipped_there():
    import polars as pl
    from cell_eval import score_agg_metrics

    def aggregate(value):
        return pl.DataFrame({"statistic": ["mean"], "pearson_delta": [value], "mse": [1.0]})

    there = score_agg_metrics(aggregate(-0.2), aggregate(0.3))
    there = dict(zip(there["metric"], there["from_baseline"], strict=True))
    assert there["pearson_delta"] == 0  # as good as the baseline, it says
    index = pd.MultiIndex.from_product([[f"P{i}" for i in range(6)], ["all"]], names=["condition", "context"])
    keys = index.to_frame(index=False).assign(metric="pearson_delta")
    noise = np.linspace(-0.02, 0.02, 6)
    scores = pd.concat([keys.assign(method="bad", value=-0.2 + noise), keys.assign(method="mean", value=0.3 - noise)])
    ceiling = keys.assign(kind="half_corrected", value=0.9 + noise)
    here = calibrate(scores, ceiling, {"all": index}, ["mean"]).set_index("method")
    assert here.loc["bad", "calibrated"] == pytest.approx(-0.5 / 0.6, abs=1e-6)
    assert here.loc["mean", "calibrated"] == pytest.approx(0)
