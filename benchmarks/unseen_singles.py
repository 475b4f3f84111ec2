"""Unseen single perturbations: the mean effect from all that is known of genes, its parts, and what it claims.

python -m benchmarks.unseen_singles --shared SHARED --screen replogle
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks import crossval
from benchmarks.common import write
from scbig import baselines, evaluation, priors
from scbig.rng import generator

METRICS = ("pearson_delta", "pearson_delta_ref_perturbed", "pearson_delta_recorded", "pds_l2", "pds_cosine", "mse")
KINDS = ("network", "text", "annotation", "tissue", "family")
THREE = ("network", "text", "annotation")
PROFILES = ("partners", "walks", "terms", "pathways")
ALL = (*PROFILES, *KINDS)
SCREENS = {
    "replogle": ("replogle2022_k562_effects.h5ad", 5.0, 2, "Replogle 2022, K562"),
    "norman": ("norman2019_effects.h5ad", 0.0, 5, "Norman 2019, K562"),
}
OURS = "neighbours"
RIVALS = {
    "control": ("control", {}),
    "mean": ("mean", {}),
    "knn-network": ("knn", {"embedding": "network"}),
    "knn-three": ("knn", {"embedding": THREE}),
    "kernel_ridge-network": ("kernel_ridge", {"embedding": "network"}),
    "kernel_ridge-five": ("kernel_ridge", {"embedding": KINDS}),
}
ONCE = {"shuffled": ("shuffled", {}), "linear": ("linear", {})}
CORE = ("mean", "knn-network", "kernel_ridge-network")
"""What is left of the others by ``--core``."""
SLOW = {"fusion-network": ("fusion", {"embedding": "network"})}


def sources(folder: Path, genes: Sequence[str]) -> dict[str, baselines.Embedding]:
    """The five embeddings, and the exact profiles of network and gene sets."""
    aliases = priors.read_aliases(folder / "aliases.tsv.gz")
    ppi = priors.read_ppi(folder / "string_v11.5_min700.tsv.gz")
    found = {
        "partners": priors.neighbour_profiles(ppi, genes, aliases),
        "walks": priors.walk_profiles(ppi, genes, aliases),
        "terms": priors.membership_profiles(priors.read_gmt(folder / "go_2024-04-25.gmt.gz"), genes, aliases),
        "pathways": priors.membership_profiles(
            priors.read_gmt(folder / "ReactomePathways_2024-09-18.gmt"), genes, aliases
        ),
    }
    aligned = {name: priors.align(each, genes) for name, each in found.items()}
    out = {name: baselines.Embedding(a.genes, a.vectors, a.mask) for name, a in aligned.items()}
    return out | crossval.embeddings(folder, genes, KINDS)


def shuffled(given: Mapping[str, baselines.Embedding], seed: int) -> dict[str, baselines.Embedding]:
    """The same vectors, dealt to other genes: knowledge that says nothing."""
    out = {}
    for name, e in given.items():
        order = generator(seed, f"{name} dealt to other genes").permutation(len(e.genes))
        out[name] = baselines.Embedding(e.genes, e.vectors[order], e.mask[order])
    return out


def variants(model: baselines.Model, first: bool) -> dict[str, dict]:
    """Options of the method's variants; those that only change the size keep its weights."""
    same = {k: model.settings[k] for k in ("weights", "ridge", "calibration") if k in model.settings}
    out = {
        "size of least squares": same | {"objective": "squares"},
        "size of least error": same | {"objective": "error"},
        "not filled in": same | {"impute": False},
    }
    if first:
        out |= {f"only {name}": {"embedding": name} for name in PROFILES}
        out["only the five embeddings"] = {"embedding": KINDS}
        weights = model.settings["weights"]
        for name in weights:
            out[f"without {name}"] = {"weights": {k: w for k, w in weights.items() if k != name}}
    return out


def one(effects, split, given, first: bool, slow: bool, core: bool):
    """Predictions of one split by method, accounts of ours, notes and seconds."""
    data = baselines.training_data_from_effects(effects, split, given)
    tested = split.conditions("test")
    models, seconds = {}, {}
    rivals = {k: RIVALS[k] for k in CORE} if core else RIVALS | (ONCE if first else {})
    for name, (baseline, options) in (rivals | (SLOW if slow else {})).items():
        start = time.perf_counter()
        models[name] = baselines.fit(baseline, data, **options)
        seconds[name] = time.perf_counter() - start
    start = time.perf_counter()
    models[OURS] = ours = baselines.fit("neighbours", data)
    seconds[OURS] = time.perf_counter() - start
    for name, options in variants(ours, first and not core).items():
        models[f"{OURS}, {name}"] = baselines.fit("neighbours", data, **options)
    if first and not core:
        dealt = baselines.training_data_from_effects(effects, split, shuffled(given, split.seed))
        models[f"{OURS}, vectors dealt at random"] = baselines.fit("neighbours", dealt)
    tables = {name: baselines.as_effects(model, tested)[0] for name, model in models.items()}
    reasons = {}
    for name, model in models.items():
        reasons |= {(name, s.condition, s.context): s.reason for s in model.skipped(tested)}
    scores = evaluation.evaluate(
        {n: t for n, t in tables.items() if t.n_obs}, effects, split, draws=2, references=(), reasons=reasons
    )
    accounts = pd.DataFrame([{"condition": c, **ours.account(c, ours.context)} for c in tested])
    return scores.per_condition, accounts, ours.notes, seconds


def rank(x: np.ndarray) -> np.ndarray:
    return pd.Series(x).rank().to_numpy()


def told_of_claims(table: pd.DataFrame, accounts: pd.DataFrame, metric: str) -> list[str]:
    """How claimed skill agrees with what was obtained, and how the claims fare against the mean."""
    got = table[(table["method"] == OURS) & (table["metric"] == "pearson_delta_ref_perturbed")]
    claims = accounts.groupby("condition")[["skill", "kept"]].mean()
    both = got.set_index("condition")["value"].to_frame("got").join(claims, how="inner")
    out = []
    if both["skill"].std() > 0:
        agree = np.corrcoef(rank(both["skill"]), rank(both["got"]))[0, 1]
        out.append(
            f"Claimed skill against the correlation obtained (ref_perturbed): Spearman {agree:.2f} over {len(both)} "
            f"conditions; mean claimed {both['skill'].mean():.3f}, mean obtained {both['got'].mean():.3f}."
        )
        third = pd.qcut(both["skill"].rank(method="first"), 3, labels=["least", "middle", "most"])
        for name, rows in both.groupby(third, observed=True):
            out.append(
                f"Third of {name} claimed skill: claimed {rows['skill'].mean():.3f}, got {rows['got'].mean():.3f}."
            )
    for name, part in (
        ("claims skill", claims["skill"] > 0),
        ("claims more than the median", claims["skill"] > claims["skill"].median()),
        ("claims none", claims["skill"] <= 0),
    ):
        chosen = table[table["condition"].isin(claims.index[part])]
        if part.sum() > 5:
            gap, _ = crossval.against(chosen, OURS, "mean", metric)
            out.append(f"Against the mean in {metric} where it {name} ({int(part.sum())} conditions): {gap}.")
    return out


def report(out: str, title: str, command: str, tables, accounts, notes, seconds, n_splits: int, about: str) -> None:
    """One table over the splits that have run."""
    keys = ["method", "condition", "context", "stratum", "metric"]
    table = pd.concat(tables).groupby(keys, sort=False)["value"].mean().reset_index()
    metrics = [m for m in METRICS if (table["metric"] == m).any()]
    gaps = ("pearson_delta", "pearson_delta_ref_perturbed", "pds_l2")
    lines = [["method", *metrics, *(f"ours minus it, {m}" for m in gaps)]]
    for name in dict.fromkeys(table["method"]):
        values = [crossval.with_interval(table, name, m) for m in metrics]
        apart = [crossval.against(table, OURS, name, m)[0] if name != OURS else "" for m in gaps]
        lines.append([name, *values, *apart])
    told = [about, *told_of_claims(table, pd.concat(accounts), "pearson_delta"), "What was chosen, fold by fold:"]
    told += [f"- {note}" for note in notes]
    per_fit = {k: float(np.mean(v)) for k, v in seconds.items()}
    told.append("Seconds per fit: " + ", ".join(f"{k} {v:.1f}" for k, v in per_fit.items()) + ".")
    write(out, title, command, lines, told, {"seconds": per_fit, "splits": n_splits})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--screen", choices=tuple(SCREENS), default="replogle")
    parser.add_argument("--most", type=int, default=0, help="folds that are run; 0 runs all")
    parser.add_argument("--core", action="store_true", help="the closest rivals and the sizes of ours only")
    parser.add_argument("--slow", action="store_true", help="also the attention network on one source")
    parser.add_argument("--out", default="")
    given = parser.parse_args()
    file, clip, repeats, title = SCREENS[given.screen]
    effects = crossval.read(Path(given.shared, "data", file), clip=clip)
    conditions = crossval.singles(effects)
    effects = effects[effects.obs["condition"].isin(conditions).to_numpy()].copy()
    known = sources(Path(given.shared, "priors"), conditions)
    splits = list(crossval.folds(conditions, 5, repeats))[: given.most or None]
    tables, accounts, notes, seconds = [], [], [], {}
    for number, split in enumerate(splits, 1):
        start = time.perf_counter()
        table, account, note, took = one(effects, split, known, number <= 5, given.slow, given.core)
        tables.append(table)
        accounts.append(account)
        notes += note
        for name, value in took.items():
            seconds.setdefault(name, []).append(value)
        means = table[table["method"] == OURS].groupby("metric")["value"].mean()
        shown = ", ".join(f"{m} {means[m]:.3f}" for m in METRICS if m in means)
        print(f"split {split.name}: {time.perf_counter() - start:.0f} s; {shown}", flush=True)
        # Written after every split: a run that is stopped has what it did.
        about = (
            f"{len(conditions)} singles, {number} of {repeats} × 5 folds run; variants with 'only', 'without', 'dealt', "
            "shuffled and linear in the first 5. Differences are ours minus the method, paired over conditions that "
            "both answer. Sources know: " + ", ".join(f"{k} {int(e.mask.sum())}" for k, e in known.items()) + "."
        )
        command = f"python -m benchmarks.unseen_singles --shared DIR --screen {given.screen}"
        command += " --core" * given.core + " --slow" * given.slow + f" --most {given.most}" * (given.most > 0)
        out = given.out or f"benchmarks/results/unseen_{given.screen}"
        report(out, f"{title}: unseen singles", command, tables, accounts, notes, seconds, number, about)


if __name__ == "__main__":
    main()
