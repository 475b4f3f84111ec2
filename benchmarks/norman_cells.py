"""Cells simulated around Norman's effects, at the paper's size: scBIG part by part, beside every baseline.

python -m benchmarks.norman_cells --shared SHARED            # about an hour and a half on 2 cores
python -m benchmarks.norman_cells --shared SHARED --quick    # does it run? Two minutes

Additive split: 32 doubles are tested, 32 watched. All variants share one screen, one split and, where only stage 2 differs,
one autoencoder; what is finished in --runs is not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks import crossval
from benchmarks.common import markdown, peak_gigabytes, write
from scbig import baselines, config, data, evaluation, stages
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.simulate_effects import noiseless_effects
from scbig.data.splits import Split
from scbig.run import Run
from scbig.stages.forks import fork

FULL = "scBIG"
# The only source that knows every perturbed gene.
_ONE_SOURCE = "priors.condition=emb_refseq_lsa256.npz"
# Stage 2 alone differs.
VARIANTS = {
    FULL: [],
    "without the anchor": ["anchor.method="],
    "gates open": ["anchor.gate=1"],
    "without anchor, L_corr and L_path": ["anchor.method=", "flow.lambda_corr=0", "flow.lambda_path=0"],
    "without anchor and fusion (text alone)": ["anchor.method=", _ONE_SOURCE],
}
# The autoencoder differs too; the anchor's part of a prediction does not hang on it.
OTHERS = {
    "without anchor, no modules": ["gcae.encoder=mlp", "gcae.decoder=mlp", "flow.lambda_corr=0", "anchor.method="],
    "without anchor, random modules": ["modules.method=random", "anchor.method="],
}
BASELINES = ("control", "mean", "additive", "low_rank", "latent_additive", "matching_mean", "combination")
METRICS = (
    "pearson_delta",
    "pearson_delta_top20",
    "mse × 1000",
    "pds_l2",
    "noiseless pearson",
    "noiseless mse × 1000",
    "e_distance_share",
    "mmd × 1000",
    "coexpression_error",
    "coexpression_error_modules",
    "variance_ratio",
)
SMALLER = ("mse × 1000", "e_distance_share", "mmd × 1000", "coexpression_error")
TESTED = ("pearson_delta", "pearson_delta_top20", "mse × 1000", "e_distance_share", "mmd × 1000", "coexpression_error")


def screen_of(shared: str, folder: Path, n_cells: int, quick: bool) -> Path:
    """Simulates the screen, once."""
    path = folder / "screen.h5ad"
    if not path.exists():
        effects = data.effects_table(Path(shared, "data", "norman2019_effects.h5ad"))
        if quick:
            targets = {g for c in effects.obs["condition"].astype(str) for g in genes_of(c)}
            of_target = effects.var_names.isin(targets)
            effects = effects[:, of_target | (np.arange(effects.n_vars) < 200)].copy()
        folder.mkdir(parents=True, exist_ok=True)
        cells = data.simulate_from_effects(effects, n_cells, 0)
        cells.write_h5ad(path, compression="lzf")
        noiseless_effects(cells).write_h5ad(folder / "truth.h5ad")
    return path


def settings_of(shared: str, screen: Path, quick: bool):
    """The settings of configs/norman_simulated_cells.py, cut to what two cores train in some minutes."""
    settings = config.load("configs/norman_simulated_cells.py")
    settings.data.path, settings.priors.dir = str(screen), f"{shared}/priors"
    settings.data.size_factor = "n_umis"
    settings.gcae.decoder = "mlp"
    settings.gcae.dropout = 0.0
    settings.pretrain.epochs = 4
    settings.velocity.width = 256
    settings.flow.steps = 600
    settings.flow.evaluate_every = 100
    settings.flow.watch_conditions = 16
    settings.sample.n_cells = 500
    if quick:
        settings.modules.n_modules = 8
        settings.gcae.width, settings.gcae.heads = 16, 2
        settings.pretrain.epochs = 1
        settings.velocity.width, settings.condition.width = 32, 16
        settings.flow.steps, settings.flow.evaluate_every = 10, 10
        settings.flow.conditions = settings.flow.cells = 8
        settings.flow.watch_conditions, settings.flow.solver_steps, settings.sample.n_cells = 4, 2, 50
    return settings


def run_all(settings, runs: Path, only: list[str]) -> tuple[Run, dict[str, Run]]:
    """The run that others are forked from, and all variants up to their sampled cells."""
    base = stages.execute(runs / "base", settings, ("prepare", "cluster", "pretrain"))
    done = {}
    for name, changes in VARIANTS.items():
        if not only or name in only:
            print(f"--- {name}", flush=True)
            done[name] = fork(base.folder, runs / _slug(name), changes, until="sample")
    for name, changes in OTHERS.items():
        if not only or name in only:
            print(f"--- {name}", flush=True)
            first = ("prepare", "cluster", "pretrain", "train", "sample")
            done[name] = stages.execute(runs / _slug(name), config.override(settings, changes), first)
    return base, done


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def judged(base: Run, done: dict[str, Run], truth: ad.AnnData) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Every variant and baseline on the same cells, and against the noiseless effects."""
    adata, split = ad.read_h5ad(base.path("prepared.h5ad")), Split.load(base.path("split.csv"))
    modules = pd.read_csv(base.path("modules.csv"), keep_default_na=False).set_index("gene")["module"]
    adata.var["module"] = modules.reindex(adata.var_names).to_numpy()
    tested = sorted(set(adata.obs["condition"].astype(str)[split.assign(adata.obs) == "test"]) - {CONTROL})
    known = [name for name in BASELINES if name in baselines.REGISTRY]
    options = {name: dict(baselines.WITHOUT[name]) for name in known if name in baselines.WITHOUT}
    effects, _, notes = baselines.predictions(known, baselines.training_data(adata, split), tested, options=options)
    methods = {name: ad.read_h5ad(run.path("predictions/test.h5ad")) for name, run in done.items()} | effects
    scores = evaluation.evaluate(
        methods, adata, split, shifted=tuple(effects), draws=2, references=(), ceiling_draws=0, n_cells=400
    )
    noiseless = truth[:, list(scores.genes)].to_df().set_index(truth.obs["condition"].astype(str))
    rows = []
    for method, predicted in scores.predicted.items():
        for place, condition in enumerate(scores.conditions["condition"]):
            keep = ~np.isin(scores.genes, genes_of(condition))
            p, y = predicted[place][keep], noiseless.loc[condition].to_numpy()[keep]
            r = float(np.corrcoef(p, y)[0, 1]) if np.ptp(p) > 0 else 0.0
            context = scores.conditions["context"].iloc[place]
            rows += [(method, condition, context, "", "noiseless pearson", r),
                     (method, condition, context, "", "noiseless mse", float(np.square(p - y).mean()))]  # fmt: skip
    extra = pd.DataFrame(rows, columns=["method", "condition", "context", "stratum", "metric", "value"])
    table = pd.concat([scores.per_condition, extra], ignore_index=True)
    small = table[table["metric"].isin(("mse", "noiseless mse", "mmd"))]
    small = small.assign(metric=small["metric"] + " × 1000", value=1000 * small["value"])
    return pd.concat([table, small], ignore_index=True), {k: list(v) for k, v in notes.items()}


def compared(table: pd.DataFrame, rivals: list[str]) -> list[list[str]]:
    """The full method less each rival, metric by metric; a star where a corrected paired test tells them apart."""
    keys = pd.MultiIndex.from_frame(table[["condition", "context"]].drop_duplicates())
    tests = evaluation.paired_tests(table, {"all": keys}, [FULL], TESTED)
    rows = [[f"{FULL} less …", *TESTED]]
    for rival in rivals:
        cells = []
        for metric in TESTED:
            one = tests[(tests["second"] == rival) & (tests["metric"] == metric)]
            if not len(one):
                cells.append("–")
                continue
            t = one.iloc[0]
            better = (t["mean"] < 0) == (metric in SMALLER)
            told = f" {'better' if better else 'WORSE'}" if t["real"] else ""
            cells.append(f"{t['mean']:+.3f} ({t['low']:+.3f} … {t['high']:+.3f}){told}")
        rows.append([rival, *cells])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--cells", type=int, default=90_000)
    parser.add_argument("--only", nargs="*", default=[], help="names of variants; all by default")
    parser.add_argument("--set", nargs="*", default=[], help="settings changed in every run, such as flow.steps=500")
    parser.add_argument("--quick", action="store_true", help="few cells and genes, hardly trained")
    parser.add_argument("--runs", default="runs/bench_norman_cells")
    parser.add_argument("--out", default="benchmarks/results/norman_cells")
    given = parser.parse_args()
    runs, n_cells = Path(given.runs), 6_000 if given.quick else given.cells
    settings = settings_of(given.shared, screen_of(given.shared, runs, n_cells, given.quick), given.quick)
    base, done = run_all(config.override(settings, given.set), runs, given.only)
    table, fits = judged(base, done, ad.read_h5ad(runs / "truth.h5ad"))
    methods = list(dict.fromkeys(table["method"]))
    rows = [["method", *METRICS, "s, stage 2"]]
    seconds = {name: run.provenance["stages"]["train"]["seconds"] for name, run in done.items()}
    for method in methods:
        cells = [crossval.with_interval(table, method, metric) for metric in METRICS]
        rows.append([method, *cells, f"{seconds[method]:.0f}" if method in seconds else ""])
    first = {name: done[name].provenance["stages"]["pretrain"]["seconds"] for name in OTHERS if name in done}
    first = {"shared": base.provenance["stages"]["pretrain"]["seconds"], **first}
    adata = ad.read_h5ad(base.path("prepared.h5ad"), backed="r")
    notes = [
        f"Real effects, simulated cells: {adata.n_obs:,} cells × {adata.n_vars:,} genes. Means over "
        f"{table['condition'].nunique()} held-out doubles with bootstrap 95% intervals over them, by the judge; perturbed "
        "genes do not count. `noiseless`: against the expected effect that the cells were drawn around. "
        "e_distance_share: of unmoved controls. Baselines as cells are controls moved by their effect.",
        f"Autoencoder: width {settings.gcae.width}, depth {settings.gcae.depth}, induced encoder, mlp decoder (on 2 cores "
        f"the induced decoder is several times slower); {settings.pretrain.epochs} epochs; flow {settings.flow.steps} "
        f"steps, width {settings.velocity.width}. The paper's are 256, 3 and 100 epochs. One seed.",
        "Stage 1 took "
        + ", ".join(f"{value:.0f} s ({name})" for name, value in first.items())
        + f"; peak memory {peak_gigabytes():.1f} GB.",
        "\"no modules\": encoder and decoder are plain networks, and L_corr, which is made of modules, is off.",
    ]  # fmt: skip
    anchors = {name: run.provenance["stages"]["train"]["remarks"].get("anchor", {}) for name, run in done.items()}
    if FULL in done:
        against = compared(table, [m for m in methods if m != FULL])
        notes.append("Paired differences, marked where Holm's test over all rivals and the interval agree:")
        notes.append(markdown(against))
        gates = anchors[FULL].get("gates", {})
        notes.append(f"Gates of {FULL}: " + "; ".join(f"{k}: mean {g['mean']:.2f}, shape {g['shape']:.2f}, from "
                     f"{g['n']} conditions" for k, g in gates.items()) + ".")  # fmt: skip
    flag = (" --quick" if given.quick else "") + (f" --set {' '.join(given.set)}" if given.set else "")
    record = {
        "table": table[table["metric"].isin(METRICS)].to_dict("list"),
        "anchors": anchors,
        "seconds": seconds,
        "fits": fits,
    }
    title = "Cells simulated around the effects of Norman 2019"
    write(given.out, title, f"python -m benchmarks.norman_cells --shared DIR{flag}", rows, notes, record)


if __name__ == "__main__":
    main()
