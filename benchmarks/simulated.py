"""The simulated screen, additive split, against the noiseless truth, beside additive and low-rank additive.

python -m benchmarks.simulated --seeds 3
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np

from benchmarks.common import write
from scbig import config, evaluation, stages
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.simulate import SimConfig, save, simulate
from scbig.run import Run

METHODS = ("scBIG", "additive", "low_rank", "linear", "mean", "control")


def against_truth(scores: evaluation.Scores, truth: ad.AnnData, run: Run) -> dict[str, dict[str, float]]:
    """Pearson of every predicted effect with the noiseless one, perturbed genes left out, by method and condition.

    scBIG's effect is that of all cells it sampled; the judge draws only as many as there are real ones, whose noise the
    truth does not have.
    """
    cells, prepared = ad.read_h5ad(run.path("predictions/test.h5ad")), ad.read_h5ad(run.path("prepared.h5ad"))
    controls = prepared.X[(prepared.obs["condition"] == CONTROL).to_numpy()].mean(axis=0)
    sampled = cells.to_df().groupby(cells.obs["condition"].astype(str)).mean() - np.asarray(controls).ravel()
    noiseless = truth[:, list(scores.genes)].to_df().set_index(truth.obs["condition"].astype(str))
    found: dict[str, dict[str, float]] = {}
    for method in METHODS:
        for place, condition in enumerate(scores.conditions["condition"]):
            keep = ~np.isin(scores.genes, genes_of(condition))
            own = sampled.loc[condition, list(scores.genes)].to_numpy()
            predicted = (own if method == "scBIG" else scores.predicted[method][place])[keep]
            flat = np.ptp(predicted) == 0
            value = 0.0 if flat else np.corrcoef(predicted, noiseless.loc[condition].to_numpy()[keep])[0, 1]
            found.setdefault(method, {})[condition] = float(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", default="runs/bench_simulated")
    parser.add_argument("--out", default="benchmarks/results/simulated")
    given = parser.parse_args()
    kinds: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    overall: dict[str, list[float]] = {method: [] for method in METHODS}
    distance: dict[str, list[float]] = {method: [] for method in METHODS}
    seconds = []
    for seed in range(given.seeds):
        folder = Path(given.runs, str(seed))
        if not (folder / "simulated").exists():
            save(simulate(SimConfig.demo(seed)), folder / "simulated")
        settings = config.demo(folder)
        settings.seed = settings.split.seed = seed
        run = stages.execute(folder, settings)
        seconds.append(sum(stage["seconds"] for stage in run.provenance["stages"].values()))
        scores = evaluation.load(run.path("evaluation"))
        truth = ad.read_h5ad(folder / "simulated" / "truth.h5ad")
        kind = dict(zip(truth.obs["condition"].astype(str), truth.obs["kind"].astype(str), strict=True))
        for method, values in against_truth(scores, truth, run).items():
            overall[method].append(float(np.mean(list(values.values()))))
            distance[method].append(scores.value(method, "e_distance_share"))
            for condition, value in values.items():
                kinds[method].setdefault(kind[condition], []).append(value)
    names = sorted(kinds["scBIG"])
    rows = [["method", "all pairs", *names, "e-distance share"]]
    for method in METHODS:
        mean, spread = np.mean(overall[method]), np.std(overall[method], ddof=1) if given.seeds > 1 else np.nan
        rows.append(
            [method, f"{mean:.3f} ± {spread:.3f}"]
            + [f"{np.mean(kinds[method][name]):.3f}" for name in names]
            + [f"{np.mean(distance[method]):.3f}"]
        )
    counts = ", ".join(f"{len(kinds['scBIG'][name])} {name}" for name in names)
    notes = [
        "Pearson of the predicted with the noiseless effect of held-out pairs; mean ± standard deviation over "
        f"{given.seeds} simulated screens ({counts}). scBIG's effects are means over the 500 cells sampled "
        "of each pair; baselines are effects. The e-distance is the judge's, on as many cells as are real; "
        "that of baselines is of control cells moved by the effect.",
        f"Whole runs took {', '.join(f'{s:.0f}' for s in seconds)} s. Cells are simulated.",
    ]
    command = f"python -m benchmarks.simulated --seeds {given.seeds}"
    record = {"overall": overall, "kinds": kinds, "e_distance_share": distance, "seconds": seconds}
    write(given.out, "Simulated screen, additive split", command, rows, notes, record)


if __name__ == "__main__":
    main()
