"""What cells are decoded as: expression with what is left of a control added, or counts that are drawn.

python -m benchmarks.decoder --seeds 1
python -m benchmarks.decoder --seeds 1 --shared SHARED
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks.common import write
from scbig import config, predict, stages
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.simulate import SimConfig, save, simulate
from scbig.data.splits import Split
from scbig.evaluation.populations import Population, Reference, Yardstick
from scbig.run import Run
from scbig.training import read_metrics

LIKELIHOODS = ("gaussian", "negative_binomial")
KINDS = {
    "control cells": None,
    "gaussian, decoder mean": ("gaussian", False),
    "gaussian, with the control's residual": ("gaussian", True),
    "negative binomial": ("negative_binomial", True),
}
SCORES = ("variance_ratio", "coexpression_error", "e_distance", "mmd", "zeros", "pearson_delta")
_FEWEST = 30  # real cells of a condition that correlations are taken from


def trained(folder: Path, likelihood: str, settings, source: Path | None) -> Run:
    """A run up to stage 2; what both likelihoods have in common is copied from the first."""
    if source is not None and not folder.exists():
        left = shutil.ignore_patterns("gcae", "latents.zarr", "flow", "metrics.jsonl", "tensorboard")
        shutil.copytree(source, folder, ignore=left)
        Run(folder).forget("pretrain")
    settings.gcae.likelihood = likelihood
    return stages.execute(folder, settings, ("prepare", "cluster", "pretrain", "train"))


def explained(run: Run) -> float:
    """Share of the variance of held-out cells that decoding explains, at the parameters that are kept."""
    return float(min(read_metrics(run.folder, "pretrain"), key=lambda line: line["score"])["explained"])


def measure(runs: dict[str, Run]) -> dict[str, dict[str, list[float]]]:
    """Scores of each kind of cells in each condition of the test part, against its real cells."""
    run = runs["gaussian"]
    prepared = ad.read_h5ad(run.path("prepared.h5ad"))
    part = Split.load(run.path("split.csv")).assign(prepared.obs)
    condition, x = prepared.obs["condition"].astype(str).to_numpy(), prepared.X
    names, sizes = np.unique(condition[(part == "test") & (condition != CONTROL)], return_counts=True)
    names = [str(name) for name, size in zip(names, sizes, strict=True) if size >= _FEWEST]
    yardstick = Yardstick.fit(x[part == "train"], prepared.var_names)
    held = (condition == CONTROL) & (part == "test")
    controls = x[held if held.any() else condition == CONTROL].toarray()
    predictors = {likelihood: predict.load(each.folder) for likelihood, each in runs.items()}
    found: dict[str, dict[str, list[float]]] = {kind: {score: [] for score in SCORES} for kind in KINDS}
    for kind, how in KINDS.items():
        if how is not None:
            predictor = predictors[how[0]]
            predictor.settings.flow.residual = how[1]
            cells = predictor.sample(names, len(controls))
            labels = cells.obs["condition"].astype(str).to_numpy()
        for name in names:
            real = x[(part == "test") & (condition == name)].toarray()
            ours = controls if how is None else cells.X[labels == name]
            without = [gene for gene in genes_of(name) if gene in set(prepared.var_names)]
            reference = Reference(real, yardstick, without)
            scores = reference.score(Population(ours, yardstick, without))
            keep = ~np.isin(prepared.var_names, without)
            observed, effect = ((each.mean(axis=0) - controls.mean(axis=0))[keep] for each in (real, ours))
            values = {
                "variance_ratio": scores["variance_ratio"],
                "coexpression_error": scores["coexpression_error"],
                "e_distance": scores["e_distance"],
                "mmd": scores["mmd"],
                "zeros": float((ours[:, keep] == 0).mean() / (real[:, keep] == 0).mean()),
                "pearson_delta": float(np.corrcoef(observed, effect)[0, 1]) if np.ptp(effect) else 0.0,
            }
            for score, value in values.items():
                found[kind][score].append(float(value))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="", help="with it Papalexi instead of the simulated screen")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--change", nargs="*", default=["anchor.method="], help="settings of both, as NAME=VALUE")
    parser.add_argument("--runs", default="runs/bench_decoder")
    parser.add_argument("--out", default="benchmarks/results/decoder")
    given = parser.parse_args()
    screen = "papalexi" if given.shared else "simulated"
    values: dict[str, dict[str, list[float]]] = {kind: {score: [] for score in SCORES} for kind in KINDS}
    kept: dict[str, list[float]] = {likelihood: [] for likelihood in LIKELIHOODS}
    seconds: dict[str, list[float]] = {likelihood: [] for likelihood in LIKELIHOODS}
    each_condition = []
    for seed in range(given.seeds):
        folder = Path(given.runs, f"{screen}-{seed}")
        if given.shared:
            settings = config.load("configs/papalexi.py")
            settings.data.path = f"{given.shared}/data/papalexi2021_thp1.h5ad"
            settings.priors.dir = f"{given.shared}/priors"
        else:
            if not (folder / "simulated").exists():
                save(simulate(SimConfig.demo(seed)), folder / "simulated")
            settings = config.demo(folder)
        settings.seed = settings.split.seed = seed
        settings = config.override(settings, given.change)
        runs: dict[str, Run] = {}
        for likelihood in LIKELIHOODS:
            runs[likelihood] = trained(
                folder / likelihood, likelihood, settings, runs["gaussian"].folder if runs else None
            )
            kept[likelihood].append(explained(runs[likelihood]))
            seconds[likelihood].append(float(runs[likelihood].provenance["stages"]["pretrain"]["seconds"]))
        found = measure(runs)
        each_condition.append(found)
        for kind, scores in found.items():
            for score, these in scores.items():
                values[kind][score].append(float(np.mean(these)))
    rows = [["cells", "held-out variance explained", *SCORES]]
    for kind, scores in values.items():
        likelihood = KINDS[kind] and KINDS[kind][0]
        told = f"{np.mean(kept[likelihood]):.3f}" if likelihood else "–"
        rows.append([kind, told, *(f"{np.mean(scores[score]):.3f}" for score in SCORES)])
    settings_told = ", ".join(f"`{change}`" for change in given.change)
    notes = [
        f"Means over the held-out conditions with at least {_FEWEST} real cells, then over {given.seeds} seed(s) of split, "
        f"weights and training; both decoders with {settings_told}. `zeros` is the share of zeros over that of the real "
        "cells, `variance_ratio` likewise; both should be 1. As many cells as "
        "there are controls to start from. e-distances are means over conditions: where a knockout does nothing, no share of "
        "control's can be taken.",
        "Held-out variance explained is of the expression that is decoded: by the Gaussian decoder of cells it has encoded "
        "whole; by the other the expected log-expression at the cell's own depth. The Gaussian one is rewarded for "
        "reproducing the counting noise of the very cell, the other is trained on halves of the counts so that it cannot.",
        "Pretraining took "
        + "; ".join(
            f"{name.replace('_', ' ')} {', '.join(f'{s:.0f}' for s in each)} s" for name, each in seconds.items()
        )
        + ".",
    ]
    command = f"python -m benchmarks.decoder --seeds {given.seeds}" + (" --shared SHARED" if given.shared else "")
    if given.change != ["anchor.method="]:
        command += f" --change {' '.join(given.change)}"
    title = "Decoders of expression and of counts: " + ("Papalexi 2021" if given.shared else "the simulated screen")
    out = given.out + ("_papalexi" if given.shared else "")
    record = {"means": values, "explained": kept, "seconds": seconds, "conditions": each_condition}
    write(out, title, command, rows, notes, record)


if __name__ == "__main__":
    main()
