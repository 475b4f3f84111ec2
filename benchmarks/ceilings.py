"""Papalexi 2021: what real cells reach when they predict other real cells, and which metrics can tell anything.

python -m benchmarks.ceilings --shared SHARED
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import write
from scbig import baselines, config, data, evaluation
from scbig.data.conditions import CONTROL
from scbig.data.splits import Split
from scbig.evaluation.metrics import METRICS
from scbig.rng import generator

STRONG = 0.5  # split-half correlation above which an effect counts as strong


def same_controls(adata, name: str, draws: int) -> float:
    """The same correlation where both halves are seen from all controls, which ties them together."""
    condition = adata.obs["condition"].astype(str).to_numpy()
    x = adata.X.toarray().astype(np.float64)
    control, keep = x[condition == CONTROL].mean(axis=0), adata.var_names != name
    found = []
    for draw in range(draws):
        rows = generator(draw, f"halves of {name}").permutation(np.flatnonzero(condition == name))
        a, b = (x[half].mean(axis=0) - control for half in np.array_split(rows, 2))
        found.append(np.corrcoef(a[keep], b[keep])[0, 1])
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--out", default="benchmarks/results/ceilings")
    given = parser.parse_args()
    settings = config.load("configs/papalexi.py")
    settings.data.path = str(Path(given.shared, "data", "papalexi2021_thp1.h5ad"))
    adata, _ = data.prepare(None, settings)
    names = sorted(set(adata.obs["condition"].astype(str)) - {CONTROL})
    # Two folds: every knockout is tested once, and there are others to take the mean of.
    order = generator(0, "folds of a benchmark").permutation(names)
    tables, marks = [], []
    for fold in range(2):
        rows = [(c, "test" if c in set(order[fold::2]) else "train", "") for c in names]
        split = Split(f"fold {fold}", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
        # It is the ceiling that matters here: the method judged is a naive one.
        mean, _ = baselines.as_effects(baselines.fit("mean", baselines.training_data(adata, split)), names)
        scores = evaluation.evaluate({"mean": mean}, adata, split, shifted=["mean"], ceiling_draws=given.draws)
        tables.append(scores.ceiling.merge(scores.conditions[["condition", "n_real", "effect_size"]], on="condition"))
        marks.append(scores.calibrated[scores.calibrated["stratum"] == "all"].assign(fold=fold))
    ceiling = pd.concat(tables)
    wide = ceiling[ceiling["metric"] == "pearson_delta"].pivot(
        index="condition", columns="kind", values=["value", "sd"]
    )
    about = ceiling.drop_duplicates("condition").set_index("condition")
    ordered = wide["value"]["half"].sort_values(ascending=False)
    lines = [
        [
            "knockout",
            "cells",
            "halves",
            "± over draws",
            "corrected",
            "interpolated duplicate",
            "halves, same controls",
            "effect size",
        ]
    ]
    shared = {name: same_controls(adata, name, given.draws) for name in ordered.index}
    for name in ordered.index:
        v = wide.loc[name]
        lines.append([
            name, str(about.loc[name, "n_real"]), f"{v['value']['half']:.3f}", f"{v['sd']['half']:.3f}",
            f"{v['value']['half_corrected']:.3f}", f"{v['value']['interpolated']:.3f}",
            f"{shared[name]:.3f}", f"{about.loc[name, 'effect_size']:.2f}"])  # fmt: skip
    usable = pd.concat(marks).drop_duplicates(["metric", "fold"]).groupby("metric")["usable"].sum()
    lists = {n: ", ".join(m for m in METRICS if m in usable.index and usable[m] == n) or "none" for n in (2, 1, 0)}
    told = [
        f"pearson_delta of one half of a knockout's cells with the other, each seen from its own half of the controls; "
        f"mean over {given.draws} splits. {int((ordered > STRONG).sum())} of {len(ordered)} are above {STRONG}; median "
        f"{ordered.median():.2f}. Seen from the same controls, whose noise both halves then share, the median is "
        f"{np.median(list(shared.values())):.2f}, with {sum(v > STRONG for v in shared.values())} above {STRONG}.",
        "Metrics whose range over all knockouts is certain in both of two folds: "
        f"{lists[2]}. In one: {lists[1]}. In neither: {lists[0]}.",
    ]
    write(given.out, "Papalexi 2021: ceilings", "python -m benchmarks.ceilings --shared DIR", lines, told, {})


if __name__ == "__main__":
    main()
