"""The simulated screen, additive split, against the noiseless truth: by the kind of interaction that was planted.

python -m benchmarks.simulated --seeds 3              # half an hour on 2 cores
python -m benchmarks.simulated --seeds 1 --quick      # does it run?
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks import crossval
from benchmarks.common import markdown, write
from scbig import baselines, config, evaluation, stages
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.simulate import SimConfig, save, simulate
from scbig.data.splits import Split
from scbig.evaluation.statistics import bootstrap_weights, interval
from scbig.run import Run
from scbig.stages.forks import fork

FULL, BARE, RANDOM, BOTH = "scBIG", "without anchor", "random modules", "random modules, without anchor"
BASELINES = ("combination", "additive", "low_rank", "linear", "mean", "control")
KINDS = ("additive", "buffering", "masking", "synergistic")
RIVALS = {
    FULL: (BARE, RANDOM, "combination", "additive", "low_rank"),
    BARE: (BOTH, "additive", "low_rank"),
}


def settings_of(folder: Path, seed: int, given: argparse.Namespace):
    """The settings of the demonstration."""
    settings = config.override(config.demo(folder), given.set)
    settings.seed = settings.split.seed = seed
    if given.quick:
        settings.pretrain.epochs = 2
        settings.velocity.width, settings.condition.width = 32, 16
        settings.flow.steps, settings.flow.evaluate_every = 10, 10
    return settings


def runs_of(folder: Path, seed: int, given: argparse.Namespace) -> dict[str, Run]:
    """ScBIG with and without its anchor, on modules found and on random ones, up to sampled cells."""
    if not (folder / "simulated").exists():
        save(simulate(SimConfig.demo(seed)), folder / "simulated")
    settings = settings_of(folder, seed, given)
    upto = ("prepare", "cluster", "pretrain", "train", "sample")
    beside = folder.with_name(f"{folder.name}-random")
    full = stages.execute(folder, settings, upto)
    random = stages.execute(beside, config.override(settings, ["modules.method=random"]), upto)
    bare = ["anchor.method="]
    return {
        FULL: full,
        BARE: fork(full.folder, folder.with_name(f"{folder.name}-bare"), bare, until="sample"),
        RANDOM: random,
        BOTH: fork(random.folder, folder.with_name(f"{folder.name}-random-bare"), bare, until="sample"),
    }


def against_truth(
    scores: evaluation.Scores, truth: ad.AnnData, runs: Run | Mapping[str, Run]
) -> dict[str, dict[str, float]]:
    """Pearson of every predicted effect with the noiseless one, perturbed genes left out, by method and condition.

    The effect of a run is that of all cells it sampled; the judge draws only as many as there are real ones, whose noise
    the truth does not have.
    """
    runs = {FULL: runs} if isinstance(runs, Run) else runs
    noiseless = truth[:, list(scores.genes)].to_df().set_index(truth.obs["condition"].astype(str))
    found: dict[str, dict[str, float]] = {}
    for method, predicted in scores.predicted.items():
        sampled = _sampled(runs[method])[list(scores.genes)] if method in runs else None
        for place, condition in enumerate(scores.conditions["condition"]):
            keep = ~np.isin(scores.genes, genes_of(condition))
            p = (predicted[place] if sampled is None else sampled.loc[condition].to_numpy())[keep]
            y = noiseless.loc[condition].to_numpy()[keep]
            found.setdefault(method, {})[condition] = float(np.corrcoef(p, y)[0, 1]) if np.ptp(p) > 0 else 0.0
    return found


def _sampled(run: Run) -> pd.DataFrame:
    """The effects of all sampled cells."""
    cells, prepared = ad.read_h5ad(run.path("predictions/test.h5ad")), ad.read_h5ad(run.path("prepared.h5ad"))
    controls = prepared.X[(prepared.obs["condition"] == CONTROL).to_numpy()].mean(axis=0)
    return cells.to_df().groupby(cells.obs["condition"].astype(str)).mean() - np.asarray(controls).ravel()


def scored(runs: dict[str, Run], truth: ad.AnnData, seed: int) -> pd.DataFrame:
    """The judge's scores of all runs and baselines, and how well each agrees with the truth."""
    first = runs[FULL]
    adata, split = ad.read_h5ad(first.path("prepared.h5ad")), Split.load(first.path("split.csv"))
    labels = adata.obs["condition"].astype(str)
    tested = sorted(set(labels[split.assign(adata.obs) == "test"]) - {CONTROL})
    context = str(adata.obs["context"].iloc[0])
    known = [name for name in BASELINES if name in baselines.REGISTRY]
    effects, _, _ = baselines.predictions(
        known, baselines.training_data(adata, split), tested, [context] * len(tested), baselines.WITHOUT
    )
    cells = {name: ad.read_h5ad(run.path("predictions/test.h5ad")) for name, run in runs.items()}
    scores = evaluation.evaluate(
        {**cells, **effects}, adata, split, shifted=tuple(effects), draws=2, references=(), ceiling_draws=0, seed=seed
    )
    kind = dict(zip(truth.obs["condition"].astype(str), truth.obs["kind"].astype(str), strict=True))
    found = against_truth(scores, truth, runs)
    rows = [(method, c, "truth", value) for method, values in found.items() for c, value in values.items()]
    columns = ["method", "condition", "metric", "value"]
    table = pd.concat([pd.DataFrame(rows, columns=columns), scores.per_condition[columns]], ignore_index=True)
    # The screen stands where a context would: conditions of other screens are other pairs.
    return table.assign(context=f"screen {seed}", kind=table["condition"].map(kind))


def gap(table: pd.DataFrame, first: str, second: str) -> str:
    """The paired difference in correlation with the truth over the pairs of all screens."""
    text, real = crossval.against(table[table["metric"] == "truth"], first, second, "truth")
    return f"{text}{' *' if real else ''}"


def modules_found(runs: list[Run], folders: list[Path]) -> str:
    """How well the modules match those planted."""
    from sklearn.metrics import adjusted_rand_score

    values: dict[str, list[float]] = {}
    for each, folder in zip(runs, folders, strict=True):
        planted = pd.read_csv(folder / "simulated" / "modules.csv", keep_default_na=False).set_index("gene")
        found = pd.read_csv(each.path("modules.csv"), keep_default_na=False).set_index("gene")["module"]
        same = planted.loc[found.index]
        regulators = same["is_regulator"].astype(str).str.lower().eq("true").to_numpy()
        values.setdefault("all genes", []).append(adjusted_rand_score(same["module"], found))
        values.setdefault("regulators", []).append(
            adjusted_rand_score(same["module"][regulators], found[same.index[regulators]])
        )
    return ", ".join(f"{name} {np.mean(v):.2f}" for name, v in values.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="settings changed in every run, such as flow.steps=500")
    parser.add_argument("--quick", action="store_true", help="hardly trained")
    parser.add_argument("--runs", default="runs/bench_simulated")
    parser.add_argument("--out", default="benchmarks/results/simulated")
    given = parser.parse_args()
    tables, seconds, real, random, folders = [], [], [], [], []
    for seed in range(given.seeds):
        folder = Path(given.runs, str(seed))
        runs = runs_of(folder, seed, given)
        tables.append(scored(runs, ad.read_h5ad(folder / "simulated" / "truth.h5ad"), seed))
        seconds.append(sum(stage["seconds"] for stage in runs[FULL].provenance["stages"].values()))
        real.append(runs[FULL])
        random.append(runs[RANDOM])
        folders.append(folder)
    table = pd.concat(tables, ignore_index=True)
    truth = table[table["metric"] == "truth"]
    count = truth[truth["method"] == FULL]["kind"].value_counts()
    names = [name for name in KINDS if name in count]
    rows = [["method", "all pairs", *names, "e-distance share", "coexpression error"]]
    for method in dict.fromkeys(truth["method"]):
        own = truth[truth["method"] == method]
        by_screen = own.groupby("context")["value"].mean()
        spread = f" ± {by_screen.std(ddof=1):.3f}" if given.seeds > 1 else ""
        cells = [f"{by_screen.mean():.3f}{spread}"]
        for name in names:
            values = own[own["kind"] == name].sort_values(["context", "condition"])["value"].to_numpy()[:, None]
            (mean,), (low,), (high,) = interval(values, bootstrap_weights(len(values)))
            cells.append(f"{mean:.3f} ({low:.3f} … {high:.3f})")
        for metric in ("e_distance_share", "coexpression_error"):
            cells.append(f"{table[(table['method'] == method) & (table['metric'] == metric)]['value'].mean():.3f}")
        rows.append([method, *cells])
    versus = [["difference", "all pairs", *names]]
    for first, rivals in RIVALS.items():
        for rival in rivals:
            if rival in set(truth["method"]):
                each = [gap(truth, first, rival), *(gap(truth[truth["kind"] == name], first, rival) for name in names)]
                versus.append([f"{first} less {rival}", *each])
    counts = ", ".join(f"{count[name]} {name}" for name in names)
    gates = [run.provenance["stages"]["train"]["remarks"].get("anchor", {}).get("gates", {}) for run in real]
    notes = [
        "Pearson of the predicted with the noiseless effect of held-out pairs; all pairs: mean ± standard deviation over "
        f"{given.seeds} simulated screens; by kind: mean and bootstrap 95% interval over the pairs of all screens "
        f"({counts}). The effects of scBIG are means over the 500 cells sampled of each pair; baselines are effects. The "
        "e-distance is the judge's, on as many cells as are real; that of baselines is of control cells moved by the "
        "effect.",
        "Paired differences over pairs (bootstrap 95% interval, signed-rank p; * where the interval excludes zero). Few "
        "pairs of a kind, and pairs of one screen share genes: the intervals are rather too narrow.",
        markdown(versus),
        f"Modules against those planted (adjusted Rand index): found by GRC: {modules_found(real, folders)}; random: "
        f"{modules_found(random, folders)}.",
        "Gates by screen: " + "; ".join(
            ", ".join(f"{kind} mean {g['mean']:.2f} shape {g['shape']:.2f}" for kind, g in each.items()) or "none"
            for each in gates
        ) + ".",
        f"Runs of scBIG took {', '.join(f'{s:.0f}' for s in seconds)} s. Cells are simulated.",
    ]  # fmt: skip
    command = f"python -m benchmarks.simulated --seeds {given.seeds}"
    command += (" --quick" if given.quick else "") + (f" --set {' '.join(given.set)}" if given.set else "")
    kept = table[table["metric"].isin(("truth", "pearson_delta", "mse", "e_distance_share", "coexpression_error"))]
    record = {"table": kept.to_dict("list"), "gates": gates, "seconds": seconds}
    write(given.out, "Simulated screen, additive split", command, rows, notes, record)


if __name__ == "__main__":
    main()
