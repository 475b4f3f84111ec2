"""Norman 2019, effects: what pairs owe to their singles, and whether any embedding tells unseen singles.

python -m benchmarks.norman_effects --shared SHARED
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pandas as pd

from benchmarks import crossval
from benchmarks.common import write
from scbig.data.conditions import genes_of
from scbig.data.splits import Split, make

METRICS = ("pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "mse", "pds_l2")
KINDS = ("network", "text", "annotation", "tissue", "family")


def pairs(effects, seeds: int) -> tuple[list[list[str]], list[str], dict]:
    """Doubles of which both singles were measured: all at once, and random halves with the others in training."""
    known = set(crossval.singles(effects))
    doubles = [c for c in effects.obs["condition"] if len(genes_of(c)) == 2 and set(genes_of(c)) <= known]
    effects = effects[effects.obs["condition"].isin([*known, *doubles]).to_numpy()].copy()
    rows = [(c, "train", "") for c in sorted(known)] + [(c, "test", "") for c in doubles]
    whole = Split("all pairs", "file", 0, pd.DataFrame(rows, columns=["condition", "part", "stratum"]))
    sums = {name: (name, {}) for name in ("control", "mean", "additive")}
    table, _, _ = crossval.judged(effects, [whole], sums, {})
    lines = [["method", "pearson_delta", "top 20", "perturbed genes counted", "top 20, counted", "mse"]]
    for name in sums:
        lines.append([name, *(crossval.with_interval(table, name, m) for m in (
            "pearson_delta", "pearson_delta_top20", "pearson_delta_with_targets", "pearson_delta_top20_with_targets",
            "mse"))])  # fmt: skip
    splits = [make("additive", effects.obs, {"val_fraction": 0.0, "test_fraction": 0.5}, seed) for seed in range(seeds)]
    methods = sums | {name: (name, {}) for name in ("matching_mean", "low_rank", "shuffled", "latent_additive")}
    halves, _, notes = crossval.judged(effects, splits, methods, {})
    lines += [[f"*{seeds} random halves*", *[""] * 5]]
    for name in methods:
        lines.append([name, *(crossval.with_interval(halves, name, m) for m in (
            "pearson_delta", "pearson_delta_top20", "pearson_delta_with_targets", "pearson_delta_top20_with_targets",
            "mse"))])  # fmt: skip
    told = [f"{len(doubles)} doubles of which both singles were measured. Ranks chosen: {_counted(notes['low_rank'])}."]
    for rival in ("low_rank", "latent_additive"):
        text, real = crossval.against(halves, rival, "additive", "pearson_delta")
        told.append(f"{rival} against additive: {text}; {'a' if real else 'no'} real difference.")
    return lines, told, {"pairs": table.to_dict("list"), "halves": halves.to_dict("list")}


def _counted(notes: list[str]) -> str:
    return ", ".join(f"{text} ({n} times)" for text, n in Counter(notes).most_common())


def unseen(effects, sources, repeats: int) -> tuple[list[list[str]], list[str], dict]:
    """Unseen singles, five folds."""
    conditions = crossval.singles(effects)
    splits = list(crossval.folds(conditions, 5, repeats))
    alone = effects[effects.obs["condition"].isin(conditions).to_numpy()].copy()
    methods = {name: (name, {}) for name in ("control", "mean", "shuffled", "linear")}
    for kind in sources:
        methods[f"linear-{kind}"] = ("linear", {"embedding": kind})
        methods[f"knn-{kind}"] = ("knn", {"embedding": kind})
        methods[f"kernel_ridge-{kind}"] = ("kernel_ridge", {"embedding": kind})
    for name in ("knn", "kernel_ridge", "elastic_net", "fusion"):
        methods[f"{name}-all"] = (name, {"embedding": tuple(sources)})
    table, seconds, _ = crossval.judged(alone, splits, methods, sources)
    lines = [["method", *METRICS, "pearson_delta minus mean's"]]
    for name in methods:
        gap, _ = crossval.against(table, name, "mean", "pearson_delta")
        lines.append([name, *(crossval.with_interval(table, name, m) for m in METRICS), gap if name != "mean" else ""])
    told = [
        f"{len(conditions)} singles, {repeats} × 5 folds; a condition's score is the mean over repeats, intervals are "
        "over conditions.",
        "Better than the mean of the training effects in pearson_delta (interval and Wilcoxon test, corrected for the "
        f"number of methods): {', '.join(crossval.better(table, 'mean', 'pearson_delta')) or 'none'}.",
    ]
    return lines, told, {"unseen": table.to_dict("list"), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="benchmarks/results/norman")
    given = parser.parse_args()
    effects = crossval.read(Path(given.shared, "data", "norman2019_effects.h5ad"))
    genes = sorted({g for c in effects.obs["condition"] for g in genes_of(c)})
    sources = crossval.embeddings(Path(given.shared, "priors"), genes, KINDS)
    command = "python -m benchmarks.norman_effects --shared DIR"
    lines, told, record = pairs(effects, given.seeds)
    write(f"{given.out}_pairs", "Norman 2019: pairs", command, lines, told, {})
    lines, told, record = unseen(effects, sources, given.repeats)
    coverage = ", ".join(f"{kind} {int(e.mask.sum())}" for kind, e in sources.items())
    told.append(f"Of {len(genes)} perturbed genes each source knows: {coverage}.")
    write(f"{given.out}_unseen", "Norman 2019: unseen singles", command, lines, told, {"seconds": record["seconds"]})


if __name__ == "__main__":
    main()
