"""Conformal intervals of predicted effects on conditions held out: do they cover, and is what is uncertain wrong by more?

python -m benchmarks.uncertainty --shared SHARED

Calibrated on training conditions alone, each predicted by models that were fitted without it; minutes on one thread,
most of them Replogle (--folds 0 leaves it out). Results are written after every task.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
from anndata import AnnData

from benchmarks import crossval
from benchmarks.common import write
from benchmarks.modules import interactions, semantic
from scbig import baselines
from scbig.anchor.conformal import calibrate
from scbig.anchor.crossfit import out_of_fold
from scbig.anchor.spread import agreement, coverage, effect_size, ensemble_spread, neighbour_error
from scbig.baselines import additive, combination, low_rank, neighbours
from scbig.baselines.sources import pairwise, unit_sources
from scbig.data.conditions import genes_of
from scbig.data.splits import Split, make
from scbig.evaluation.statistics import bootstrap_weights, interval
from scbig.modules import cluster

LEVELS = (0.5, 0.8, 0.9, 0.95)
SOURCES = ("network", "text", "annotation")
METHODS = ("conformal", "no difficulty", "constant width", "Gaussian sd")
Members = Mapping[str, Callable[[baselines.TrainingData], baselines.Model]]


@dataclass(frozen=True)
class Fold:
    """Predictions of the members for calibration (out-of-fold) and test conditions, and what was measured.

    ``within`` is how far from the measured value the true one may lie, ``similar`` what calibration and test conditions
    have in common with calibration conditions.
    """

    predicted: dict[str, tuple[np.ndarray, np.ndarray]]
    observed: tuple[np.ndarray, np.ndarray]
    within: tuple[np.ndarray, np.ndarray] | tuple[None, None]
    similar: tuple[np.ndarray, np.ndarray]
    tested: list[str]


def similarity(training: baselines.TrainingData, rows: Sequence[str], columns: Sequence[str]) -> np.ndarray:
    """Mean cosine of the embeddings of singles; the share of genes that combinations have in common; NaN to itself."""
    if training.embeddings:
        each = [pairwise(known, rows, columns) for known in unit_sources(training, None, "intervals").values()]
        out = np.mean(np.nan_to_num(each), axis=0)
    else:
        sets = [[set(genes_of(c)) for c in names] for names in (rows, columns)]
        out = np.array([[len(a & b) / max(len(a), len(b)) for b in sets[1]] for a in sets[0]])
    return np.where(np.array(rows)[:, None] == np.array(columns), np.nan, out)


def predictions(effects: AnnData, split: Split, kind: str, members: Members, sources: Mapping, censored: float) -> Fold:
    """Members fitted on training conditions; nothing of a test condition is read but to be compared with."""
    training = baselines.training_data_from_effects(effects, split, sources)
    tested = [c for c in split.conditions("test") if c in set(effects.obs["condition"])]
    predicted, rows = {}, None
    for name, fit in members.items():
        held = out_of_fold(fit, training, [kind])
        rows = [i for i, each in enumerate(held.kind) if each == kind]
        new = fit(training).predict(tested)
        new = np.where(np.isnan(new), training.effects.mean(axis=0), new)
        predicted[name] = held.effects[rows], new
    table = effects.to_df()
    table.index = effects.obs["condition"].astype(str)
    names = [training.conditions[i] for i in rows], tested
    genes = effects.var_names.to_numpy()
    observed, within = [], []
    for each in names:
        x = table.loc[each].to_numpy(np.float32)
        own = np.array([np.isin(genes, genes_of(c)) for c in each])
        within.append(np.where(x == 0, censored, 0.0))
        observed.append(np.where(own, np.nan, x).astype(np.float32))
    similar = tuple(similarity(training, each, names[0]) for each in names)
    return Fold(predicted, tuple(observed), tuple(within) if censored else (None, None), similar, tested)


def bounds(fold: Fold, genes: Sequence[str], groups: Mapping[str, str]) -> dict:
    """Lower and upper ends by method, level, and genes or modules; and what they are to cover."""
    members = [np.stack([pair[side] for pair in fold.predicted.values()]) for side in (0, 1)]
    middle = next(iter(fold.predicted.values()))
    missed = np.sqrt(np.nanmean(np.square(middle[0] - fold.observed[0], dtype=np.float64), axis=1))
    spread = [
        np.stack([effect_size(m), ensemble_spread(e), neighbour_error(s, missed)], axis=1)
        for m, e, s in zip(middle, members, fold.similar, strict=True)
    ]
    kinds = [["held out"] * len(m) for m in middle]
    whole = calibrate(middle[0], fold.observed[0], genes, kinds[0], spread[0], groups=groups, within=fold.within[0])
    plain = calibrate(middle[0], fold.observed[0], genes, kinds[0], groups=groups, within=fold.within[0])
    out = {"powers": whole.by_gene.scales.powers[-1].round(2).tolist(), "n": len(middle[0])}
    for modules in (False, True):
        means = whole.means if modules else np.asarray
        slack = [None if w is None else means(np.where(np.isnan(o), np.nan, w))
                 for w, o in zip(fold.within, fold.observed, strict=True)]  # fmt: skip
        error = np.abs(means(middle[0] - fold.observed[0])) + (0 if slack[0] is None else slack[0])
        centre = means(middle[1].astype(np.float64))
        out["truth", modules] = means(fold.observed[1].astype(np.float64)), slack[1]
        deviation = np.sqrt(np.nanmean(np.square(error), axis=0))
        for level in LEVELS:
            same = np.nanquantile(error, min(level * (len(error) + 1) / len(error), 1.0))
            half = {"constant width": same, "Gaussian sd": NormalDist().inv_cdf(0.5 + level / 2) * deviation}
            for method, width in half.items():
                out[method, level, modules] = centre - width, centre + width
            for method, calibration, at in (("conformal", whole, spread[1]), ("no difficulty", plain, None)):
                out[method, level, modules] = calibration.intervals(middle[1], kinds[1], at, level, modules)
    # Thirds of the conditions by how difficult they are said to be.
    low, high = out["conformal", 0.9, False]
    order = np.argsort((high - low).mean(axis=1), kind="stable")
    out["thirds"] = np.array_split(order, 3)
    return out


def measures(fold: Fold, found: dict) -> pd.DataFrame:
    """One row per method, level, kind of column and condition, and one per fold for rank correlations."""
    rows = []
    thirds = np.zeros(len(fold.tested), int)
    for i, each in enumerate(found["thirds"]):
        thirds[each] = i
    for modules in (False, True):
        truth, slack = found["truth", modules]
        beyond = 0 if slack is None else slack
        recorded = np.where(truth == 0, np.nan, truth)
        for method in METHODS:
            for level in LEVELS:
                low, high = found[method, level, modules]
                covered = coverage(low, high, truth, slack)
                middle, half = (high + low) / 2, (high - low) / 2
                missed = np.maximum(np.abs(truth - middle) + beyond - half, 0) / (1 - level)
                score = np.nanmean(half + missed, axis=1)
                some = coverage(low, high, recorded)
                told = agreement(low, high, truth)
                rows += [
                    {"method": method, "level": level, "modules": modules, "condition": c, "covered": covered[i],
                     "recorded": some[i], "half": half[i].mean(), "score": score[i], "third": thirds[i],
                     "over": told.conditions, "inside": told.genes}
                    for i, c in enumerate(fold.tested)
                ]  # fmt: skip
    return pd.DataFrame(rows)


def stated(values: pd.Series) -> str:
    """Mean over conditions and its bootstrap 95% interval, in per cent; a condition is the mean of its draws."""
    each = values.groupby(level=0).mean().sort_index().to_numpy(np.float64)[:, None]
    (mean,), (low,), (high,) = interval(each, bootstrap_weights(len(each)))
    return f"{100 * mean:.1f} ({100 * low:.1f} … {100 * high:.1f})"


def groups_of(priors: Path, genes: list[str], n: int) -> dict[str, str]:
    """Modules of the genes by Gene-Relation Clustering."""
    vectors, mask = semantic(priors, genes)
    found = cluster(vectors, mask, interactions(priors, genes), genes, n_modules=n)
    return {gene: f"module {module}" for gene, module in zip(found.genes, found.module, strict=True)}


def tasks(shared: Path, draws: int, folds: int) -> Iterator[tuple]:
    """Name, effects, splits, kind, members (the first is what is judged), embeddings, censoring."""
    effects = crossval.read(shared / "data" / "norman2019_effects.h5ad")
    known = set(crossval.singles(effects))
    doubles = {c for c in effects.obs["condition"] if len(genes_of(c)) == 2 and set(genes_of(c)) <= known}
    genes = sorted({g for c in known for g in genes_of(c)})
    sources = crossval.embeddings(shared / "priors", genes, SOURCES)
    single = {"neighbours": neighbours.fit} | {s: partial(neighbours.fit, embedding=s) for s in SOURCES}
    pairs = effects[effects.obs["condition"].isin([*known, *doubles]).to_numpy()].copy()
    splits = [make("additive", pairs.obs, {"val_fraction": 0.0, "test_fraction": 0.25}, seed) for seed in range(draws)]
    sums = {"combination": combination.fit, "low_rank": low_rank.fit, "additive": additive.fit}
    yield "Norman pairs (combination)", pairs, splits, "combination", sums, {}, 0.0
    alone = effects[effects.obs["condition"].isin(known).to_numpy()].copy()
    splits = list(crossval.folds(sorted(known), 5, 1))
    yield "Norman unseen singles (neighbours)", alone, splits, "unseen", single, sources, 0.0
    if not folds:
        return
    effects = crossval.read(shared / "data" / "replogle2022_k562_effects.h5ad", clip=5.0)
    effects.X = effects.X if isinstance(effects.X, np.ndarray) else effects.X.toarray()
    conditions = crossval.singles(effects)
    effects = effects[effects.obs["condition"].isin(conditions).to_numpy()].copy()
    sources = crossval.embeddings(shared / "priors", conditions, SOURCES)
    splits = list(islice(crossval.folds(conditions, 5, 1), folds))
    fewer = {"neighbours": single["neighbours"], "network": single["network"]}
    yield "Replogle unseen singles (neighbours)", effects, splits, "unseen", fewer, sources, 0.5


COMMAND = "python -m benchmarks.uncertainty --shared DIR"
BEFORE = [
    "Columns by level: share of entries covered, mean over held-out conditions (bootstrap 95% interval over "
    "conditions). Thirds are of the conditions by the width that the conformal interval states. Width and interval "
    "score (width plus what is missed, over 1 - level; less is better) at 90% as a share of the constant width's. Over "
    "conditions, within: Spearman correlation of width and absolute error, over the conditions of a split, and over the "
    "entries of a condition; – where all widths are equal.",
    "Difficulty: the size of the predicted effect, the spread of the methods or sources that make it up, and the "
    "out-of-fold errors of similar training conditions (genes in common for pairs, embeddings for singles). No "
    "difficulty: scale per gene only. Constant width: one conformal width for all. Gaussian sd: normal "
    "quantiles of the out-of-fold standard deviation of each gene. Genes perturbed themselves do not count.",
]
AFTER = (
    "What speaks against it: coverage is an average over conditions. One whose effect is of another size than its "
    "prediction lets expect is covered far less in all its genes at once, as the least covered conditions show, and "
    "no interval here promises otherwise."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--draws", type=int, default=10, help="of the Norman pairs")
    parser.add_argument("--folds", type=int, default=2, help="of five, of Replogle; 0 leaves it out")
    parser.add_argument("--modules", type=int, default=32)
    parser.add_argument("--out", default="benchmarks/results/uncertainty")
    given = parser.parse_args()
    shared = Path(given.shared)
    lines = [["", *(f"{100 * level:.0f}%" for level in LEVELS), "easiest third, 90%", "hardest third, 90%",
              "mean half width, 90%", "width", "interval score", "over conditions", "within"]]  # fmt: skip
    told, record = [], {}
    for name, effects, splits, kind, members, sources, censored in tasks(shared, given.draws, given.folds):
        begun, tables, genewise, powers, counts = time.monotonic(), [], [], [], []
        genes = [str(g) for g in effects.var_names]
        groups = groups_of(shared / "priors", genes, given.modules)
        for split in splits:
            fold = predictions(effects, split, kind, members, sources, censored)
            found = bounds(fold, genes, groups)
            tables.append(measures(fold, found))
            powers.append(found["powers"])
            counts.append(found["n"])
            low, high = found["conformal", 0.9, False]
            truth, slack = found["truth", False]
            beyond = 0 if slack is None else slack
            inside = ((truth - beyond >= low) & (truth + beyond <= high)).astype(float)
            genewise.append(np.where(np.isnan(truth), np.nan, inside))
            print(f"{name}, {split.name}: {time.monotonic() - begun:.0f} s", flush=True)
        table = pd.concat(tables)
        record[name] = {}
        for modules in (False, True):
            lines.append([f"*{name}, {'modules' if modules else 'genes'}*", *[""] * (len(lines[0]) - 1)])
            same = table[(table["modules"] == modules) & (table["method"] == "constant width")].set_index("condition")
            for method in METHODS:
                own = table[(table["modules"] == modules) & (table["method"] == method)].set_index("condition")
                at = own[own["level"] == 0.9]
                usual = same[same["level"] == 0.9]
                share, score = (at[c].mean() / usual[c].mean() for c in ("half", "score"))
                ranks = [f"{at[c].mean():.2f}" if at[c].notna().any() else "–" for c in ("over", "inside")]
                lines.append([
                    method, *(stated(own.loc[own["level"] == level, "covered"]) for level in LEVELS),
                    *(stated(at.loc[at["third"] == third, "covered"]) for third in (0, 2)),
                    f"{at['half'].mean():.3f}", f"{share:.3f}", f"{score:.3f}", *ranks,
                ])  # fmt: skip
                record[name][f"{method}, {'modules' if modules else 'genes'}"] = {
                    **{f"covered at {level}": own.loc[own["level"] == level, "covered"].mean() for level in LEVELS},
                    "half width": at["half"].mean(), "interval score to constant": score,
                    "spearman over conditions": at["over"].mean(), "spearman within": at["inside"].mean(),
                }  # fmt: skip
        own = table[~table["modules"] & (table["method"] == "conformal") & (table["level"] == 0.9)]
        single = own.groupby("condition")["covered"].mean()
        every = np.nanmean(np.concatenate(genewise), axis=0)
        overs = own.drop_duplicates(["over"])["over"]
        told.append(
            f"{name}: {len(splits)} splits, calibrated on {min(counts)}–{max(counts)} conditions, {len(single)} tested. "
            f"At 90%, single conditions are covered from {100 * single.min():.0f}% to {100 * single.max():.0f}% "
            f"(5th to 95th percentile {100 * single.quantile(0.05):.0f}% to {100 * single.quantile(0.95):.0f}%); "
            f"{100 * ((single >= 0.85) & (single <= 0.95)).mean():.0f}% of them between 85 and 95%. Genes: "
            f"{100 * ((every >= 0.85) & (every <= 0.95)).mean():.0f}% are covered in 85 to 95% of the conditions. "
            f"Rank correlation over conditions by split: {overs.min():.2f} to {overs.max():.2f}. "
            f"Exponents of effect size, ensemble spread and neighbours' error, mean over splits: "
            f"{np.round(np.mean(powers, axis=0), 2).tolist()}. {time.monotonic() - begun:.0f} s."
        )
        if censored:
            seen = {m: stated(own2.set_index("condition")["recorded"]) for m in METHODS for own2 in
                    [table[~table["modules"] & (table["method"] == m) & (table["level"] == 0.9)]]}  # fmt: skip
            told.append(
                f"An entry that was not recorded lies within ± {censored}: it is covered if all of that is, so intervals "
                "are at least that wide, and errors for width and rank correlation count it as 0. Of the entries that were "
                f"recorded ({100 * np.mean(effects.X != 0):.0f}%), 90% intervals cover, by method: "
                + "; ".join(f"{m} {v}" for m, v in seen.items())
                + "."
            )
        # Written as it grows: the last task takes as long as the others together.
        write(given.out, "Uncertainty of predicted effects", COMMAND, lines, [*BEFORE, *told, AFTER], record)


if __name__ == "__main__":
    main()
