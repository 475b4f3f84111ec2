"""Metrics shared with cell-eval: ours and theirs on the same simulated cells, in turn, and whether they agree.

python -m benchmarks.cell_eval
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from importlib import metadata

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from benchmarks.common import write
from scbig.baselines import group_means
from scbig.data.conditions import CONTROL
from scbig.evaluation import expression as de
from scbig.evaluation import metrics as m

OURS = {
    "des": "de_spearman_lfc_sig", "de_direction_match": "de_direction_match", "de_overlap_n": "overlap_at_N",
    "de_precision": "precision_at_N", "de_recall": "de_sig_genes_recall", "n_de": "de_nsig_counts_pred",
    "roc_auc": "roc_auc", "pr_auc": "pr_auc",
}  # fmt: skip
THEIRS = (
    "pearson_delta", "mse", "mae", "mse_delta", "mae_delta", "discrimination_score_l1", "discrimination_score_l2",
    "discrimination_score_cosine", "overlap_at_N", "precision_at_N", "de_spearman_lfc_sig", "de_direction_match",
    "de_sig_genes_recall", "de_nsig_counts", "roc_auc", "pr_auc",
)  # fmt: skip


def simulated(given: argparse.Namespace, strength: float, seed: int) -> ad.AnnData:
    """Log-normalised counts; a tenth of the genes respond to each condition, every condition perturbs one gene."""
    rng, shared = np.random.default_rng(seed), np.random.default_rng(0)
    base = shared.normal(-1.5, 1.2, given.genes)
    blocks, labels = [], []
    for i in range(given.conditions + 1):
        effect = shared.normal(0, 0.8, given.genes) * (shared.random(given.genes) < 0.1) * (i > 0)
        n = given.cells if i else given.controls
        depth = rng.lognormal(0, 0.3, (n, 1))
        counts = rng.poisson(np.exp(base + strength * effect) * depth)
        blocks.append(sp.csr_matrix(np.log1p(counts / depth)))
        labels += [f"g{i - 1}" if i else CONTROL] * n
    obs = pd.DataFrame({"condition": labels}, index=[f"c{i}" for i in range(len(labels))])
    return ad.AnnData(sp.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=_genes(given.genes)))


def _genes(n: int) -> list[str]:
    return [f"g{i}" for i in range(n)]


def shared_metrics(predicted: ad.AnnData, real: ad.AnnData) -> pd.DataFrame:
    """Every metric shared with cell-eval, one row per condition, by cell-eval's names and definitions."""
    conditions = sorted(set(real.obs["condition"].astype(str)) - {CONTROL})
    genes = real.var_names.to_numpy()
    every = np.ones((len(conditions), len(genes)), bool)
    own = np.array(conditions)[:, None] != genes[None]
    means, effects, tests = [], [], []
    for side in (predicted, real):
        group = pd.Categorical(side.obs["condition"].astype(str), categories=conditions).codes.astype(np.int64)
        control = side.X[group < 0]
        mean = group_means(side.X, group, len(conditions))[0]
        base = group_means(control, np.zeros(control.shape[0], np.int64), 1)[0]
        fdr = de.benjamini_hochberg(de.rank_sum(side.X, group, len(conditions), control).p)
        means.append(mean)
        effects.append(mean - base)
        tests.append(de.Tested(fdr, de.log_fold_change(mean, base)))
    out = {OURS[name]: values for name, values in de.de_metrics(*tests, every).items()}
    out |= {
        "de_nsig_counts_real": (tests[1].fdr < de.FDR).sum(axis=1),
        "pearson_delta": m.pearson(*effects, every),
        "mse": m.mse(*means, every),
        "mae": m.mae(*means, every),
        "mse_delta": m.mse(*effects, every),
        "mae_delta": m.mae(*effects, every),
    }
    out |= {f"discrimination_score_{kind}": m.pds(*effects, own, kind) for kind in ("l1", "l2", "cosine")}
    return pd.DataFrame(out, index=pd.Index(conditions, name="perturbation")).astype(np.float64)


def cell_eval_metrics(predicted: ad.AnnData, real: ad.AnnData) -> pd.DataFrame:
    """The same by cell-eval, all its threads, everything that is not shared left out."""
    from cell_eval import MetricsEvaluator
    from cell_eval.metrics import metrics_registry

    with tempfile.TemporaryDirectory() as folder:
        evaluator = MetricsEvaluator(predicted, real, control_pert=CONTROL, pert_col="condition", outdir=folder)
        left_out = [name for name in metrics_registry.list_metrics() if name not in THEIRS]
        found, _ = evaluator.compute(skip_metrics=left_out, write_csv=False, break_on_error=True)
    return found.to_pandas().set_index("perturbation").sort_index().astype(np.float64)


def timed(function: Callable, *arguments) -> tuple[float, pd.DataFrame]:
    begun = time.perf_counter()
    found = function(*arguments)
    return time.perf_counter() - begun, found


def disagreement(ours: pd.DataFrame, theirs: pd.DataFrame) -> dict[str, float]:
    """Largest difference by metric, where both have a number; ours has no rank correlation of fewer than five genes."""
    if set(ours) != set(theirs):
        raise SystemExit(f"metrics differ: {sorted(set(ours) ^ set(theirs))}")
    theirs = theirs.loc[ours.index, list(ours)]
    odd = ours.isna() & theirs.notna()
    odd["de_spearman_lfc_sig"] &= ours["de_nsig_counts_real"] >= 5
    if odd.to_numpy().any():
        raise SystemExit(f"only cell-eval has numbers of {list(odd.columns[odd.any()])}")
    return (ours - theirs).abs().max().fillna(0.0).to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conditions", type=int, default=60)
    parser.add_argument("--cells", type=int, default=200, help="per condition")
    parser.add_argument("--genes", type=int, default=2_000)
    parser.add_argument("--controls", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", default="benchmarks/results/cell_eval")
    given = parser.parse_args()
    # Their progress bars and notices would drown the table.
    os.environ["TQDM_DISABLE"] = "1"
    logging.disable(logging.WARNING)
    real, predicted = simulated(given, 1.0, 1), simulated(given, 0.7, 2)
    small = argparse.Namespace(conditions=3, cells=20, genes=30, controls=30)
    tiny = simulated(small, 1.0, 1), simulated(small, 1.0, 2)
    # In double precision, for agreement.
    gap = disagreement(shared_metrics(predicted, real), cell_eval_metrics(predicted, real))
    worst = max(gap, key=gap.get)
    for side in (real, predicted, *tiny):
        side.X = side.X.astype(np.float32)
    first = timed(cell_eval_metrics, *tiny)[0]
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(given.rounds):
        seconds["ours"].append(timed(shared_metrics, predicted, real)[0])
        seconds["theirs"].append(timed(cell_eval_metrics, predicted, real)[0])
    rows = [["round", "ours, s", "cell-eval, s", "times faster"]]
    for i, (a, b) in enumerate(zip(seconds["ours"], seconds["theirs"], strict=True)):
        rows.append([str(i + 1), f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}"])
    a, b = (float(np.median(seconds[side])) for side in ("ours", "theirs"))
    rows.append(["median", f"{a:.2f}", f"{b:.2f}", f"{b / a:.1f}"])
    notes = [
        f"{given.conditions} conditions of {given.cells} cells and {given.controls} controls × {given.genes} genes, "
        f"simulated, a real and a predicted side, {real.X.nnz / np.prod(real.shape):.0%} not zero, sparse and in single "
        "precision. Each side has its own controls. Both start from cells in memory and end with a table of "
        f"{len(gap)} metrics by condition: {', '.join(f'`{name}`' for name in sorted(gap))}.",
        f"cell-eval {metadata.version('cell-eval')}, pdex {metadata.version('pdex')}, with all threads; ours with one, but "
        f"for matrix products. What cell-eval compiles was compiled before on a tiny screen ({first:.0f} s for single "
        "precision alone) and is not counted. Its other metrics are switched off.",
        f"Largest difference of any number, cells in double precision: {gap[worst]:.1e} (`{worst}`).",
    ]
    flags = ("conditions", "cells", "genes", "controls", "rounds")
    command = "python -m benchmarks.cell_eval " + " ".join(f"--{name} {getattr(given, name)}" for name in flags)
    record = {"seconds": seconds, "ratio": b / a, "first_call": first, "disagreement": gap, **vars(given)}
    write(given.out, "Metrics shared with cell-eval", command, rows, notes, record)
    if gap[worst] > 1e-5:
        raise SystemExit(f"disagrees with cell-eval in {worst}")


if __name__ == "__main__":
    main()
