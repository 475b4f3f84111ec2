"""Genetic interactions: planted ones found in cells and foretold, and Norman's published ones found again.

python -m benchmarks.interactions --seeds 3 --shared SHARED     # some ten minutes on one core
python -m benchmarks.interactions --quick                       # does it run?

Worlds are numbered from 100: what learns from measured pairs was made up on others.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy.stats import rankdata, spearmanr

from benchmarks.common import markdown, write
from benchmarks.published_interactions import CLASSES, canonical
from scbig import baselines, data
from scbig.analysis import interaction_model, interactions
from scbig.baselines import Embedding, TrainingData
from scbig.baselines.validation import folds
from scbig.data.conditions import genes_of
from scbig.data.simulate import SimConfig, simulate
from scbig.modules import cluster
from scbig.rng import generator

FIRST = 100  # seed of the first world
KINDS = ("synergistic", "masking", "buffering")
WITH = {"synergy or masking": ("synergistic", "masking"), "all kinds": KINDS, **{kind: (kind,) for kind in KINDS}}


def area(value: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve."""
    n = int(positive.sum())
    return float((rankdata(value)[positive].sum() - n * (n + 1) / 2) / (n * (len(value) - n)))


def areas(tables: list[pd.DataFrame], column: str, kinds: tuple[str, ...], draws: int = 500) -> tuple[float, ...]:
    """Mean area over worlds of the named kinds against additive pairs, with a 95% bootstrap interval over pairs."""
    sides = []
    for table in tables:
        known = table[table[column].notna()]
        sides.append([known.loc[known["truth"].isin(k), column].to_numpy(float) for k in (kinds, ("additive",))])

    def mean(sides) -> float:
        return float(np.mean([area(np.r_[p, a], np.arange(len(p) + len(a)) < len(p)) for p, a in sides]))

    rng = generator(0, "bootstrap of interactions")
    drawn = [mean([[rng.choice(x, len(x)) for x in side] for side in sides]) for _ in range(draws)]
    return mean(sides), *np.quantile(drawn, [0.025, 0.975]).tolist()


def world(config: SimConfig) -> tuple[ad.AnnData, pd.Series, dict[str, int], dict[str, int], dict[str, Embedding]]:
    """Log-expression, kinds of conditions, modules found by GRC from embeddings, planted modules, and embeddings."""
    made = simulate(config)
    cells = made.adata
    size = cells.obs["n_umis"].to_numpy(np.float64)
    x = cells.X.multiply((np.median(size) / size)[:, None]).tocsr().astype(np.float32)
    x.data = np.log1p(x.data)
    adata = ad.AnnData(x, obs=cells.obs[["condition", "context"]].copy(), var=cells.var)
    genes, vectors = made.priors.embeddings["semantic"]
    found = cluster(
        vectors.astype(np.float32), np.ones(len(genes), bool), None, genes.tolist(), n_modules=config.n_modules
    )
    label = dict(zip(map(str, found.genes), map(int, found.module), strict=True))
    planted = dict(zip(made.modules["gene"].astype(str), made.modules["module"].astype(int), strict=True))
    kind = pd.Series(made.truth.obs["kind"].astype(str).to_numpy(), made.truth.obs["condition"].astype(str))
    source = Embedding(tuple(map(str, genes)), vectors.astype(np.float32), np.ones(len(genes), bool))
    return adata, kind, label, planted, {"semantic": source}


def effects_of(adata: ad.AnnData, sources: dict[str, Embedding]) -> TrainingData:
    """Effects of all conditions."""
    part = np.full(adata.n_obs, "train")
    genes = tuple(map(str, adata.var_names))
    return baselines.training_data_from_rows(adata.X, adata.obs, part, genes, embeddings=sources)


def crossed(known: TrainingData, pairs: list[str], seed: int) -> dict[str, np.ndarray]:
    """Every pair as ``combination`` predicts it when it is fitted without a fifth of the pairs, this one among them."""
    found = {}
    for held in folds(pairs, 5, seed):
        rows = [i for i, c in enumerate(known.conditions) if c not in held]
        rest = TrainingData(
            known.genes, tuple(known.conditions[i] for i in rows), tuple(known.contexts[i] for i in rows),
            known.effects[rows], known.n_cells[rows], known.control_mean, known.embeddings,
        )  # fmt: skip
        model = baselines.fit("combination", rest, seed=seed)
        found |= {p: np.asarray(model.rule(p, known.contexts[0]), np.float64) for p in held}
    return found


def simulated_world(config: SimConfig, draws: int) -> tuple[pd.DataFrame, dict[str, float]]:
    """Scores of all pairs of one world: from their cells, and by what was fitted without them."""
    adata, kind, label, planted, sources = world(config)
    known = effects_of(adata, sources)
    table = interactions.score_cells(adata, draws=draws, seed=config.seed)
    table = table.set_index("condition")
    table["truth"] = kind.reindex(table.index)
    table["observed: -log10 p"] = -np.log10(np.maximum(table["p"].to_numpy(float), 1e-300))
    table["observed: relative departure"] = table["relative"].astype(float)
    pairs = sorted(table.index)
    own = known.own(known.contexts[0])
    foretold = crossed(known, pairs, config.seed)
    plain = {p: interactions.score(own[genes_of(p)[0]], own[genes_of(p)[1]], foretold[p])["relative"] for p in pairs}
    table["predicted: departure of combination"] = pd.Series(plain).reindex(table.index)
    departures = table["relative"].astype(float).to_dict()
    skills = {}
    for name, modules in (("found modules", label), ("planted modules", planted), ("random modules", None)):
        if modules is None:
            shuffled = generator(config.seed, "random modules").permutation(list(label.values())).tolist()
            modules = dict(zip(label, shuffled, strict=True))
        model = interaction_model.fit(departures, known, modules, known.contexts[0], config.seed)
        column = f"predicted: learned, {name}"
        table[column] = pd.Series(model.left_out).reindex(table.index)
        skills[name] = model.auroc
        if name == "found modules":
            table["likeness"] = model.features(list(table.index))["likeness"].to_numpy()
            skills["brier"] = model.brier
    return table.reset_index(), skills


def simulated(given: argparse.Namespace, command: str) -> None:
    """Planted interactions, by all ways to find them."""
    tables, skills = [], []
    for seed in range(FIRST, FIRST + given.seeds):
        begun = time.perf_counter()
        if given.quick:
            config = SimConfig.demo(seed)
        else:
            config = getattr(SimConfig, given.preset)(seed)
        table, skill = simulated_world(config, 50 if given.quick else 200)
        tables.append(table.assign(world=seed))
        skills.append(skill)
        print(f"world {seed}: {time.perf_counter() - begun:.0f} s", flush=True)
    ways = [
        "observed: -log10 p", "observed: relative departure", "predicted: learned, found modules",
        "predicted: learned, planted modules", "predicted: learned, random modules",
        "predicted: departure of combination", "likeness",
    ]  # fmt: skip
    rows, record = [["ranked by", *WITH]], {}
    for way in ways:
        label = "predicted: likeness of the singles" if way == "likeness" else way
        cells = []
        for name, kinds in WITH.items():
            middle, low, high = areas(tables, way, kinds)
            cells.append(f"{middle:.3f} ({low:.3f} … {high:.3f})")
            record[f"{label} | {name}"] = [middle, low, high]
        rows.append([label, *cells])
    every = pd.concat(tables)
    confusion = crosstab(every["truth"], every["kind"], "planted")
    additive = every[every["truth"] == "additive"]
    own = [sum(t["truth"] == "additive") for t in tables]
    brier = ", ".join(f"{s['brier']:.3f}" for s in skills)
    notes = [
        f"Area under the ROC curve against additive pairs, mean over {len(tables)} worlds of {len(tables[0])} pairs "
        f"({own} additive), 95% bootstrap intervals over pairs. Observed: from the pair's own cells, median "
        f"{int(every['cells_ab'].median())}. Predicted: by what was fitted without the pair, in five folds.",
        f"Kinds called from cells at a false discovery rate of 5%:\n\n{confusion}",
        f"Of additive pairs {additive['departs'].mean():.0%} are called: effects add in log-rates of modules, not in mean "
        f"log-expression, so part of these departures is real (their median relative departure is "
        f"{additive['relative'].astype(float).median():.2f}; that of synergistic and masking pairs "
        f"{every.loc[every['truth'].isin(['synergistic', 'masking']), 'relative'].astype(float).median():.2f}).",
        "Left-out pairs above the median departure told from those below, area by world: "
        + "; ".join(f"{n} " + ", ".join(f"{s[n]:.2f}" for s in skills) for n in skills[0] if n != "brier")
        + f"; Brier score with found modules {brier} (0.250: a coin).",
    ]
    write(
        f"{given.out}_simulated",
        "Interactions: a planted world",
        command,
        rows,
        notes,
        {"areas": record, "skills": skills},
    )


def crosstab(first: pd.Series, second: pd.Series, title: str) -> str:
    """Counts of one label by another."""
    counts = pd.crosstab(first, second)
    body = [[str(k), *map(str, row)] for k, row in zip(counts.index, counts.to_numpy(), strict=True)]
    return markdown([[title, *map(str, counts.columns)], *body])


def permuted(value: np.ndarray, positive: np.ndarray, draws: int = 9999) -> float:
    """One-sided p of an area by permutation of the labels."""
    rng, seen = generator(0, "permuted classes"), area(value, positive)
    return float((1 + sum(area(value, rng.permutation(positive)) >= seen - 1e-12 for _ in range(draws))) / (draws + 1))


def modules_of_singles(effects: ad.AnnData, n: int) -> dict[str, int]:
    """Modules of genes by k-means on the effects of the singles: no pair is read."""
    from sklearn.cluster import KMeans

    alone = [len(genes_of(c)) == 1 for c in effects.obs["condition"].astype(str)]
    profile = np.asarray(effects.X)[alone].T
    profile = profile / np.maximum(np.linalg.norm(profile, axis=1, keepdims=True), 1e-9)
    label = KMeans(n, n_init=1, random_state=0).fit_predict(profile)
    return dict(zip(map(str, effects.var_names), map(int, label), strict=True))


def norman(given: argparse.Namespace, command: str) -> None:
    """Published classes against our scores, and predicted scores against observed ones."""
    effects = data.effects_table(Path(given.shared, "data", "norman2019_effects.h5ad"))
    x = np.asarray(effects.X, np.float64)
    table = interactions.score_effects(effects, noise=interactions.residual_noise(x), draws=50 if given.quick else 200)
    table = table.set_index("condition")
    listed = {name: sorted(canonical(p) for p in pairs) for name, pairs in CLASSES.items()}
    present = {name: [p for p in pairs if p in table.index] for name, pairs in listed.items()}
    absent = sorted({p for pairs in listed.values() for p in pairs} - set(table.index))
    of = pd.Series({p: name for name, pairs in present.items() for p in pairs})
    joined = table.loc[of.index]
    synergy = of.isin(["potentiation", "synergy, similar", "synergy, dissimilar"]).to_numpy()
    less = (of == "suppression").to_numpy()
    asked = [
        ("synergy or potentiation against suppression", "robust_magnitude", 1, synergy, synergy | less),
        ("the same", "slope", 1, synergy, synergy | less),
        ("epistasis against all others listed", "robust_dominance", 1, (of == "epistasis").to_numpy(), None),
        ("redundancy against all others listed", "joint", 1, (of == "redundancy").to_numpy(), None),
        ("the same", "similarity", 1, (of == "redundancy").to_numpy(), None),
        ("neomorphic against all others listed", "fit", -1, (of == "neomorphic").to_numpy(), None),
        ("additive against all others listed", "relative", -1, (of == "additive").to_numpy(), None),
    ]
    rows, record = [["published class", "score", "pairs", "AUROC", "p (permuted labels)"]], {}
    for what, column, sign, positive, among in asked:
        use = np.ones(len(of), bool) if among is None else among
        value = sign * joined[column].to_numpy(float)[use]
        found, p = area(value, positive[use]), permuted(value, positive[use], 199 if given.quick else 9999)
        label = column if sign > 0 else f"{column}, small first"
        rows.append([what, label, f"{positive[use].sum()} / {(~positive[use]).sum()}", f"{found:.3f}", f"{p:.4f}"])
        record[f"{what} | {column}"] = [found, p]
    shown = [
        "CBL+CNN1",
        "CBL+UBASH3B",
        "DUSP9+ETS2",
        "DUSP9+MAPK1",
        "ETS2+MAPK1",
        "CEBPA+CEBPB",
        "AHR+KLF1",
        "CEBPE+KLF1",
    ]
    columns = [
        "robust_c1",
        "robust_c2",
        "robust_magnitude",
        "robust_dominance",
        "fit",
        "similarity",
        "relative",
        "q",
        "kind",
    ]
    values = [["pair", "published", *columns]]
    for p in [p for p in shown if p in table.index]:
        cells = [f"{v:.2f}" if isinstance(v, float) else str(v) for v in table.loc[p, columns]]
        values.append([p, of.get(p, "–"), *cells])
    pairs, genes = sorted(table.index), tuple(map(str, effects.var_names))
    names = effects.obs["condition"].astype(str).tolist()
    known = TrainingData(genes, tuple(names), ("all",) * len(names), x.astype(np.float32), np.zeros(len(x), np.int64))
    foretold = crossed(known, pairs, 0)
    at = {c: i for i, c in enumerate(names)}
    predicted = {}
    for p in pairs:
        keep = ~np.isin(genes, genes_of(p))
        predicted[p] = interactions.score(*(x[at[c]][keep] for c in sorted(genes_of(p))), foretold[p][keep])
    predicted = pd.DataFrame(predicted).T
    agreed = {}
    for ours, theirs in (("robust_magnitude", "magnitude"), ("robust_dominance", "dominance"), ("fit", "fit"),
                         ("similarity", "similarity"), ("slope", "slope"), ("relative", "relative")):  # fmt: skip
        agreed[theirs] = float(
            spearmanr(table.loc[pairs, ours].astype(float), predicted.loc[pairs, theirs].astype(float))[0]
        )
    model = interaction_model.fit(
        table["relative"].astype(float).to_dict(), known, modules_of_singles(effects, 40), "all"
    )
    notes = [
        f"{len(table)} pairs with both singles, {len(of)} of them with a published class. Classes are those of Norman et al. "
        "2019 as GEARS (Roohani et al. 2023) lists them. Listed, but not in this table of effects, or without one of the "
        f"singles: {', '.join(absent) or 'none'}.",
        "Some pairs:\n\n" + markdown(values),
        "Kinds called by class (noise taken from what 20 components leave over, which overstates it):\n\n"
        + crosstab(of, joined["kind"], "published"),
        "Spearman correlation over pairs of predicted scores (`combination`, fitted without the pair, five folds) with "
        "observed ones: " + ", ".join(f"{k} {v:.2f}" for k, v in agreed.items()) + ".",
        f"Learned from the measured pairs (40 modules by k-means on the singles): left-out pairs above the median relative "
        f"departure told from those below with AUROC {model.auroc:.2f} ({model.auroc_low:.2f} … {model.auroc_high:.2f}).",
    ]  # fmt: skip
    kept = {
        "areas": record,
        "agreement": agreed,
        "absent": absent,
        "learned": [model.auroc, model.auroc_low, model.auroc_high],
    }
    write(f"{given.out}_norman", "Interactions: Norman 2019", command, rows, notes, kept)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", choices=("demo", "benchmark"), default="benchmark")
    parser.add_argument("--quick", action="store_true", help="one small world")
    parser.add_argument(
        "--shared", default="", help="folder with data/norman2019_effects.h5ad; without it, worlds only"
    )
    parser.add_argument("--out", default="benchmarks/results/interactions")
    given = parser.parse_args()
    given.seeds = 1 if given.quick else given.seeds
    command = f"python -m benchmarks.interactions --seeds {given.seeds} --preset {given.preset} --shared DIR"
    if given.shared:
        norman(given, command)
    simulated(given, command)


if __name__ == "__main__":
    main()
