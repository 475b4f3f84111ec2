"""Norman 2019, effects: what pairs do beyond the sum of their singles, term by term, and how far the ceiling is.

python -m benchmarks.norman_combinations --shared SHARED
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import crossval
from benchmarks.common import write
from scbig import baselines, evaluation
from scbig.baselines.combination import TERMS
from scbig.baselines.combination_terms import PLAIN, row_noise
from scbig.data.conditions import genes_of
from scbig.data.splits import Split
from scbig.rng import generator

METRICS = {
    "pearson_delta": "pearson_delta",
    "pearson_delta_top20": "top 20",
    "mse": "mse",
    "pearson_delta_with_targets": "pearson, counted",
    "pearson_delta_top20_with_targets": "top 20, counted",
    "mse_with_targets": "mse, counted",
    "pds_l2": "pds_l2",
}
PLAIN_BASELINES = ("control", "mean", "additive", "matching_mean", "low_rank")
RIVALS = ("additive", "low_rank", "latent_additive", "matching_mean", "mean")
N_TEST = 32
N_MODULES = 40


def draws(effects, n: int) -> list[Split]:
    """Random draws of doubles whose singles were both measured; everything else is for training."""
    names = list(effects.obs["condition"].astype(str))
    known = set(crossval.singles(effects))
    doubles = sorted(c for c in names if len(genes_of(c)) == 2 and set(genes_of(c)) <= known)
    out = []
    for seed in range(n):
        held = set(generator(seed, "doubles of a benchmark").choice(doubles, N_TEST, replace=False))
        rows = [(c, "test" if c in held else "train", "") for c in names]
        out.append(Split(str(seed), "file", seed, pd.DataFrame(rows, columns=["condition", "part", "stratum"])))
    return out


def altered(model, **changes) -> dict:
    """Options that give a fitted combination model again but for some settings."""
    chosen = {k: {**each, **changes} for k, each in model.settings["chosen"].items()}
    return {**model.settings, "chosen": chosen}


def variants(model, data, seed: int) -> dict[str, dict]:
    """The chosen model with one term left out, with one term alone, and with modules in place of components."""
    plain = {name: getattr(PLAIN, name) for name in TERMS if name != "noise"}
    out = {}
    for term in TERMS:
        if term == "noise":
            out["without noise"] = {**model.settings, "terms": tuple(t for t in TERMS if t != "noise")}
        else:
            out[f"without {term}"] = altered(model, **{term: plain[term]})
            out[f"only {term}"] = altered(model, **{t: v for t, v in plain.items() if t != term})
    out["no term (denoised sum)"] = altered(model, **plain)
    label = modules_of(data.effects, seed)
    mixed = generator(seed, "random modules").permutation(label)
    out["modules"] = {**model.settings, "modules": dict(zip(data.genes, map(int, label), strict=True))}
    out["random modules"] = {**model.settings, "modules": dict(zip(data.genes, map(int, mixed), strict=True))}
    return out


def modules_of(effects: np.ndarray, seed: int) -> np.ndarray:
    """Modules of genes by k-means on their training effects."""
    from sklearn.cluster import KMeans

    profile = effects.T / np.maximum(np.linalg.norm(effects.T, axis=1, keepdims=True), 1e-9)
    return KMeans(N_MODULES, n_init=1, random_state=seed).fit_predict(profile)


def with_shuffled_departures(data, seed: int):
    """The same training data, what each pair does beyond its sum dealt to another pair: nothing is left to learn."""
    at = {c: i for i, c in enumerate(data.conditions)}
    pairs = [c for c in data.conditions if len(genes_of(c)) > 1 and all(g in at for g in genes_of(c))]
    x = data.effects.copy()
    total = np.stack([x[[at[g] for g in genes_of(c)]].sum(axis=0) for c in pairs])
    rows = np.array([at[c] for c in pairs])
    x[rows] = total + generator(seed, "shuffled pairs").permutation(x[rows] - total)
    return baselines.TrainingData(data.genes, data.conditions, data.contexts, x, data.n_cells)


def scored(effects, splits: list[Split], networks: int, negatives: int):
    """Scores of all methods by draw, settings that were chosen, and seconds by method."""
    tables, chosen, seconds, shuffled = [], [], Counter(), []
    for i, split in enumerate(splits):
        start = time.perf_counter()
        data = baselines.training_data_from_effects(effects, split, {})
        tested = list(split.conditions("test"))
        models = {name: baselines.fit(name, data) for name in PLAIN_BASELINES}
        begun = time.perf_counter()
        full = models["combination"] = baselines.fit("combination", data)
        seconds["combination"] += time.perf_counter() - begun
        chosen.append(full.settings["chosen"]["all"])
        if chosen[-1]["kept"] > 0:
            for name, options in variants(full, data, i).items():
                models[name] = baselines.fit("combination", data, **options)
        if i < networks:
            begun = time.perf_counter()
            models["latent_additive"] = baselines.fit("latent_additive", data)
            seconds["latent_additive"] += time.perf_counter() - begun
        if i < negatives:
            models["shuffled departures"] = baselines.fit("combination", with_shuffled_departures(data, i))
            shuffled.append(models["shuffled departures"].settings["chosen"]["all"]["kept"])
        for name, model in models.items():
            # One at a time: the tests of all pairs of methods are not needed draw by draw.
            predicted = {name: baselines.as_effects(model, tested)[0]}
            table = evaluation.evaluate(predicted, effects, split, draws=2, references=()).per_condition
            table = table[(table["method"] == name) & table["metric"].isin(list(METRICS))]
            tables.append(table.assign(draw=i))
        print(f"draw {split.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return pd.concat(tables), chosen, seconds, shuffled


def averaged(table: pd.DataFrame) -> pd.DataFrame:
    """One value per condition: the mean over the draws that test it."""
    keys = ["method", "condition", "context", "stratum", "metric"]
    return table.groupby(keys, sort=False)["value"].mean().reset_index()


def against(table: pd.DataFrame, other: str, metric: str) -> str:
    """The combination model against another, on the draws in which both were fitted."""
    here = table[table["draw"].isin(table.loc[table["method"] == other, "draw"].unique())]
    return crossval.against(averaged(here), "combination", other, metric)[0]


def read_counts(effects: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Molecules by condition and gene, read back from effects on log1p(counts per million).

    A gene that some conditions have not a single molecule of shows its control's level as its lowest effect, and one
    molecule more as the smallest step above it: that gives the depth of every condition. With the depths, the level
    of every other gene is the smallest one that makes its counts whole.

    Returns:
        Counts, depth by condition, and the control's log1p(CPM) by gene; NaN where no level makes counts whole.
    """
    low = effects.min(axis=0)
    floored = (effects <= low + 1e-5).sum(axis=0) >= 10
    cpm = np.expm1(effects[:, floored] - low[floored])
    depth = np.empty(len(effects))
    for i, row in enumerate(cpm):
        step = np.sort(row[row > 1e-3])
        depth[i] = 1e6 / np.median(step[step < 1.3 * step[0]])
    counts, level, offset = np.full(effects.shape, np.nan), np.full(effects.shape[1], np.nan), depth / 1e6
    for g in range(effects.shape[1]):
        scale = np.exp(effects[:, g]) * offset
        lowest = np.argmin(scale)
        tried = (np.arange(6000) + offset[lowest]) / scale[lowest]
        found = tried[:, None] * scale - offset
        whole = np.flatnonzero(np.abs(found - np.round(found)).mean(axis=1) < 0.02)
        if len(whole):
            counts[:, g], level[g] = np.round(found[whole[0]]), np.log(tried[whole[0]])
    return counts, depth, level


def ceiling(effects, splits: list[Split]) -> tuple[dict[str, float], dict[str, float], int]:
    """What a prediction of the true rates would score against measured effects, by two estimates of the noise.

    Returns:
        By counting noise alone (a bound from above): true rates are drawn from their posterior given the counts read
        back (gamma prior by gene, matched to its moments over conditions), molecules from those, and the log rates are
        scored against the effects these molecules show. By residuals (a bound from below): all that twenty components
        leave over, a variance by condition times one by gene, counts as noise. And how many genes could be read back.
    """
    x = np.asarray(effects.X, np.float64)
    counts, depth, level = read_counts(x)
    known = ~np.isnan(level)
    k, c, size = counts[:, known], level[known], depth[:, None] / 1e6
    mean = (k.sum(axis=0) + 0.5) / size.sum()
    expected = size * mean
    weight = expected**2 / (expected + 0.1 * expected**2)
    spread = (((k - expected) ** 2 - k) / expected**2 * weight).sum(axis=0) / weight.sum(axis=0)
    shape = 1.0 / np.clip(spread, 3e-3, 4.0)
    names = effects.obs["condition"].astype(str).to_numpy()
    rows = np.flatnonzero(np.isin(names, sorted(set().union(*(s.conditions("test") for s in splits)))))
    rng = generator(0, "ceiling of a benchmark")
    genes = [str(g) for g in effects.var_names[known]]
    keep = np.array([[g not in genes_of(names[i]) for g in genes] for i in rows])
    values = []
    for _ in range(5):
        rate = rng.gamma(k[rows] + shape) / (size[rows] + shape / mean)
        seen = np.log1p(rng.poisson(rate * size[rows]) / size[rows]) - c
        values.append(_scores(np.log1p(rate) - c, seen, keep))
    by_counts = {m: float(np.mean([v[m] for v in values])) for m in values[0]}
    u, s, v = np.linalg.svd(x, full_matrices=False)
    lever = np.maximum(1 - np.square(u[:, :20]).sum(axis=1), 0.05)
    rest = np.square(x - (u[:, :20] * s[:20]) @ v[:20]) / lever[:, None]
    noise = row_noise(x)
    noise = noise[:, None] * (rest / noise[:, None]).mean(axis=0)
    share = 1 - noise[rows].mean(axis=1) / x[rows].var(axis=1)
    by_rest = {"pearson_delta": float(np.sqrt(np.maximum(share, 0)).mean()), "mse": float(noise[rows].mean())}
    return by_counts, by_rest, int(known.sum())


def _scores(found: np.ndarray, seen: np.ndarray, keep: np.ndarray) -> dict[str, float]:
    from scbig.evaluation import metrics as m

    every = np.ones_like(keep)
    return {
        "pearson_delta": m.pearson(found, seen, keep).mean(),
        "pearson_delta_top20": m.pearson(found, seen, m.top(seen, keep)).mean(),
        "mse": m.mse(found, seen, keep).mean(),
        "pearson_delta_with_targets": m.pearson(found, seen, every).mean(),
        "pearson_delta_top20_with_targets": m.pearson(found, seen, m.top(seen, every)).mean(),
        "mse_with_targets": m.mse(found, seen, every).mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--networks", type=int, default=2, help="draws in which latent_additive is fitted")
    parser.add_argument("--negatives", type=int, default=3, help="draws in which departures are shuffled")
    parser.add_argument("--out", default="benchmarks/results/norman_combinations")
    given = parser.parse_args()
    effects = crossval.read(Path(given.shared, "data", "norman2019_effects.h5ad"))
    splits = draws(effects, given.draws)
    raw, chosen, seconds, shuffled = scored(effects, splits, given.networks, given.negatives)
    table = averaged(raw)
    methods = list(dict.fromkeys(raw["method"]))
    first = [*PLAIN_BASELINES, *(m for m in ("latent_additive",) if m in methods), "combination"]
    lines = [["method", *METRICS.values()]]
    for name in [*first, *(m for m in methods if m not in first)]:
        n = raw.loc[raw["method"] == name, "draw"].nunique()
        label = name if n == len(splits) else f"{name} ({n} draws)"
        lines.append([label, *(crossval.with_interval(table, name, m) for m in METRICS)])
    by_counts, by_rest, n_known = ceiling(effects, splits)
    for label, found in (("*ceiling: counting noise*", by_counts), ("*ceiling: all residuals noise*", by_rest)):
        lines.append([label, *(f"{found[m]:.3f}" if m in found else "–" for m in METRICS)])

    def mean(name: str, metric: str) -> float:
        return float(table.loc[(table["method"] == name) & (table["metric"] == metric), "value"].mean())

    told = []
    for what, top in (("counting noise", by_counts), ("residuals", by_rest)):
        closed = {m: (mean("combination", m) - mean("additive", m)) / (top[m] - mean("additive", m)) for m in top}
        shares = ", ".join(f"{METRICS[m]} {v:.0%}" for m, v in closed.items())
        told.append(
            f"Share of the gap from additive to the ceiling by {what} that the combination model closes: {shares}."
        )
    for rival in [r for r in RIVALS if r in methods]:
        gaps = "; ".join(f"{METRICS[m]} {against(raw, rival, m)}" for m in METRICS)
        told.append(f"combination minus {rival}: {gaps}.")
    for name in methods[methods.index("combination") + 1 :]:
        if name not in RIVALS:
            gaps = "; ".join(f"{METRICS[m]} {against(raw, name, m)}" for m in list(METRICS)[:3])
            told.append(f"combination minus '{name}': {gaps}.")
    settings = Counter(", ".join(f"{k} {v:g}" for k, v in c.items() if k not in ("kept", "skill")) for c in chosen)
    kept = [c["kept"] for c in chosen]
    told += [
        f"{given.draws} draws of {N_TEST} doubles; a condition's score is the mean over its draws, intervals are "
        "bootstrap intervals over conditions, p by Wilcoxon's signed-rank test. Rows fitted in fewer draws cover fewer "
        "conditions; their differences are on those draws alone.",
        "Terms left out or alone, and modules, take the other settings as chosen for the whole model. Modules: k-means of "
        f"genes on training effects, {N_MODULES} of them; random ones have the same sizes. Pairs are then compared by the "
        "mean response of modules, not in the components.",
        f"Kept of the departure from the sum: {min(kept):.2f} to {max(kept):.2f}; with departures from the sum "
        f"dealt to other pairs {', '.join(f'{k:.2f}' for k in shuffled) or '–'}.",
        f"Settings chosen: {'; '.join(f'{text} ({n} times)' for text, n in settings.most_common())}.",
        f"Ceilings: {ceiling.__doc__.split('Returns:')[1].strip()} {n_known} of {effects.n_vars} genes could.".replace(
            "\n            ", " "
        ).replace("\n        ", " "),
        "Seconds per fit: " + ", ".join(
            f"{name} {t / (given.networks if name == 'latent_additive' else given.draws):.1f}" for name, t in seconds.items()
        ) + ".",
    ]  # fmt: skip
    record = {"chosen": chosen, "shuffled": shuffled, "ceiling": {"counts": by_counts, "residuals": by_rest}}
    record["means"] = {name: {m: mean(name, m) for m in METRICS} for name in methods}
    command = "python -m benchmarks.norman_combinations --shared DIR"
    write(given.out, "Norman 2019: pairs beyond the sum", command, lines, told, record)


if __name__ == "__main__":
    main()
