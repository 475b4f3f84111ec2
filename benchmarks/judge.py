"""How long the judge takes, and what it takes up: a screen of the size of Norman 2019, every condition tested.

python -m benchmarks.judge --shared SHARED
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import peak_gigabytes, write
from scbig import baselines, data, evaluation
from scbig.data.conditions import CONTROL
from scbig.data.splits import Split


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--cells", type=int, default=90_000)
    parser.add_argument("--conditions", type=int, default=0, help="tested; 0 tests all but two")
    parser.add_argument("--out", default="benchmarks/results/judge")
    given = parser.parse_args()
    effects = data.effects_table(Path(given.shared, "data", "norman2019_effects.h5ad"))
    # Twice the cells: one half is the screen, the other what a perfect model would hand in, noise and all.
    both = data.read(data.simulate_from_effects(effects, 2 * given.cells, 0))
    both = data.normalize(both, None, "1e4")
    first = both.obs.groupby("condition", observed=True).cumcount() % 2 == 0
    screen, again = both[first.to_numpy()].copy(), both[~first.to_numpy()]
    del both
    perturbed = sorted(set(screen.obs["condition"].astype(str)) - {CONTROL})
    tested = perturbed[2:][: given.conditions or None]
    train = [c for c in perturbed if c not in tested]
    rows = [(c, "train", "") for c in train] + [(c, "test", "") for c in tested]
    split = Split("all", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    cells = again[again.obs["condition"].isin(tested).to_numpy()].copy()
    cells.uns["scbig"] = dict(screen.uns["scbig"]) | {"kind": "cells"}
    of_mean, _ = baselines.as_effects(baselines.fit("mean", baselines.training_data(screen, split)), tested)
    before = peak_gigabytes()
    start = time.perf_counter()
    scores = evaluation.evaluate({"second half": cells, "as effects": of_mean}, screen, split, shifted=["as effects"])
    seconds = time.perf_counter() - start
    n = screen.n_obs
    density = screen.X.nnz / np.prod(screen.shape)
    lines = [
        ["cells", "genes", "conditions tested", "methods", "metrics", "seconds", "peak memory (GB)"],
        [f"{n:,}", f"{screen.n_vars:,}", str(len(scores.conditions)), str(len(scores.methods)),
         str(scores.per_condition["metric"].nunique()), f"{seconds:.0f}", f"{peak_gigabytes():.1f}"],
    ]  # fmt: skip
    about, headline = scores.provenance, ("pearson_delta", "l2", "e_distance", "de_overlap_n")
    told = [
        f"Everything the report shows: all metrics with and without the perturbed genes, {about['ceiling_draws']} splits "
        f"into halves for the ceiling, {about['bootstrap_draws']:,} bootstrap samples, paired tests. Methods: one of "
        f"cells, one of effects, and the three naive answers. {100 * density:.0f}% of entries are not zero. Before the "
        f"judge began, {before:.1f} GB were in use at most.",
        f"pearson_delta of the second half {scores.value('second half', 'pearson_delta'):.3f}; its calibrated "
        f"scores should be 1: {', '.join(_calibrated(scores, m) for m in headline)}.",
    ]
    write(given.out, "The judge: time and memory", "python -m benchmarks.judge --shared DIR", lines, told, {})


def _calibrated(scores: evaluation.Scores, metric: str) -> str:
    t = scores.calibrated
    row = t[(t["method"] == "second half") & (t["metric"] == metric) & (t["stratum"] == "all")]
    return f"{metric} {row['calibrated'].iloc[0]:.3f}" if len(row) else f"{metric} –"


if __name__ == "__main__":
    main()
