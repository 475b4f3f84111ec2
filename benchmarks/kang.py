"""Kang 2018: the answer of each of seven cell types to interferon beta, from the other six.

python -m benchmarks.kang --shared SHARED            # predicted effects, two minutes
python -m benchmarks.kang --shared SHARED --flow     # and scBIG, with and without its anchor: 14 runs more
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks import crossval
from benchmarks.common import peak_gigabytes, write
from scbig import baselines, config, evaluation, stages, training
from scbig.data.conditions import CONTROL
from scbig.data.splits import Split
from scbig.rng import generator
from scbig.run import Run
from scbig.stages.forks import fork
from scbig.training.assemble import load_autoencoder

TYPES = ("B", "CD4T", "CD8T", "CD14+Mono", "Dendritic", "FCGR3A+Mono", "NK")
METRICS = ("pearson_delta", "pearson_delta_top20", "mse × 1000", "e_distance_share")
EFFECTS = ("control", "mean", "additive", "scgen", "contexts")
STIMULUS = "stimulated"
WITHOUT = "scBIG without anchor"


def settings_of(shared: str, held_out: str, quick: bool):
    """The settings of configs/kang.py with one cell type held out."""
    settings = config.load("configs/kang.py")
    settings.data.path = f"{shared}/data/kang2018_pbmc.h5ad"
    settings.priors.dir = f"{shared}/priors"
    settings.split.held_out_context = held_out
    if quick:
        settings.pretrain.epochs = 1
        settings.velocity.width, settings.condition.width = 32, 16
        settings.flow.steps, settings.flow.evaluate_every = 10, 10
    return settings


def fit_all(adata: ad.AnnData, split: Split, held_out: str) -> tuple[dict[str, ad.AnnData], baselines.Model]:
    """Effects in the held-out type by every method that needs no network, and the model of contexts."""
    data = baselines.training_data(adata, split, latent=baselines.fit_latent(adata, split))
    models = {name: baselines.fit(name, data) for name in EFFECTS}
    return {name: baselines.as_effects(m, [STIMULUS], [held_out])[0] for name, m in models.items()}, models["contexts"]


def with_other_controls(adata: ad.AnnData, split: Split, held_out: str) -> dict[str, float]:
    """Pearson where prediction and truth are taken to different halves of the held-out type's controls."""
    own = np.flatnonzero(((adata.obs["condition"] == CONTROL) & (adata.obs["context"] == held_out)).to_numpy())
    kept_back = generator(0, f"other controls of {held_out}").permutation(own)[: len(own) // 2]
    rest = np.setdiff1d(np.arange(adata.n_obs), kept_back)
    effects, _ = fit_all(adata[rest].copy(), split, held_out)
    there = ((adata.obs["condition"] == STIMULUS) & (adata.obs["context"] == held_out)).to_numpy()
    truth = np.asarray(adata.X[there].mean(axis=0) - adata.X[kept_back].mean(axis=0)).ravel()
    return {n: float(np.corrcoef(e.X[0], truth)[0, 1]) for n, e in effects.items() if n != "control"}


def of_networks(run: Run, folder: Path, adata: ad.AnnData, split: Split, held_out: str) -> dict[str, ad.AnnData]:
    """Arithmetic in the latent of the run's autoencoder, and cells sampled by scBIG with and without its anchor."""
    auto = load_autoencoder(run, config.read_json(run.path("config.json")), adata.var_names)
    latent = baselines.latent_of(
        adata, split, partial(training.encode_all, auto), partial(training.decode_all, auto), name="GCAE"
    )
    model = baselines.fit("scgen", baselines.training_data(adata, split, latent=latent))
    bare = fork(run.folder, folder, ["anchor.method="], until="sample")
    return {
        "scgen-GCAE": baselines.as_effects(model, [STIMULUS], [held_out])[0],
        "scBIG": ad.read_h5ad(run.path("predictions/test.h5ad")),
        WITHOUT: ad.read_h5ad(bare.path("predictions/test.h5ad")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--flow", action="store_true", help="train scBIG for each cell type")
    parser.add_argument("--quick", action="store_true", help="one or two cell types, hardly trained: does it run?")
    parser.add_argument("--runs", default="runs/bench_kang")
    parser.add_argument("--out", default="benchmarks/results/kang")
    given = parser.parse_args()
    tables, notes, apart, gates = [], {}, {}, {}
    for held_out in TYPES[: 1 if given.flow else 2] if given.quick else TYPES:
        settings, folder = settings_of(given.shared, held_out, given.quick), Path(given.runs, held_out)
        run = stages.execute(folder, settings, ("prepare",))
        adata, split = ad.read_h5ad(run.path("prepared.h5ad")), Split.load(run.path("split.csv"))
        methods, model = fit_all(adata, split, held_out)
        notes[held_out] = {"note": model.notes[0], **model.account(STIMULUS, held_out)}
        apart[held_out] = with_other_controls(adata, split, held_out)
        if given.flow:
            stages.execute(folder, settings, ("cluster", "pretrain", "train", "sample"))
            gates[held_out] = run.provenance["stages"]["train"]["remarks"].get("anchor", {})
            methods |= of_networks(run, Path(given.runs, f"{held_out}-bare"), adata, split, held_out)
        shifted = [name for name, each in methods.items() if each.uns["scbig"]["kind"] == "effects"]
        scores = evaluation.evaluate(methods, adata, split, shifted=shifted, draws=2, references=(), ceiling_draws=0)
        tables.append(scores.per_condition)
    table = pd.concat(tables, ignore_index=True)
    errors = table[table["metric"] == "mse"]
    table = pd.concat([table, errors.assign(metric=METRICS[2], value=1000 * errors["value"])], ignore_index=True)
    tested = list(notes)
    methods = list(dict.fromkeys(table["method"]))
    rows = [["method", *METRICS, *(f"pearson, {name}" for name in tested)]]
    for method in methods:
        of = table[(table["method"] == method) & (table["metric"] == "pearson_delta")].set_index("context")["value"]
        means = [crossval.with_interval(table, method, m) for m in METRICS]
        rows.append([method, *means, *(f"{of[k]:.3f}" for k in tested)])
    told = [
        "Mean over the held-out cell types with bootstrap 95% intervals over them; e_distance_share is a share of that of "
        "unmoved controls, of shifted controls where a method gives effects. All choices are made inside the six training "
        "types, genes included; a held-out type lends its controls only. scgen: arithmetic in 50 principal components.",
    ]
    firsts = ["contexts", *(["scBIG"] if given.flow else [])]
    rivals = {"contexts": ["scgen", "additive"], "scBIG": ["scgen", "scgen-GCAE", "additive", "contexts", WITHOUT]}
    for first in firsts:
        for rival in rivals[first]:
            for metric in METRICS:
                gap = table[table["metric"] == metric].pivot(index="context", columns="method", values="value")
                sign = -1 if metric in METRICS[2:] else 1
                wins = int((sign * (gap[first] - gap[rival]) > 0).sum())
                text, _ = crossval.against(table, first, rival, metric)
                told.append(f"{first} against {rival} in {metric}: {text}; better in {wins} of {len(gap)} types.")
    other = pd.DataFrame(apart).mean(axis=1)
    told += [
        f"{len(tested)} pairs prove little: the smallest two-sided p of the signed-rank test is "
        f"{2 * 0.5 ** len(tested):.3f}, corrected for four rivals or more it cannot pass 0.05, and the types are neither "
        "independent (two monocytes, three kinds of T and NK cells, the same donors) nor a sample of all cell types.",
        "The prediction knows the controls that the observed effect is taken to, and their noise is in both. With one half "
        "of the held-out type's controls for the prediction and the other for the truth, mean Pearson: "
        + ", ".join(f"{name} {value:.3f}" for name, value in other.items()) + ".",
        "What was chosen: " + "; ".join(f"{name}: {each['note']}" for name, each in notes.items()) + ".",
        f"Peak memory {peak_gigabytes():.1f} GB.",
    ]  # fmt: skip
    if gates:
        told.append("Gates and anchors of the runs are in the record (kang.json).")
    record = {"table": table.to_dict("list"), "contexts": notes, "other_controls": apart, "anchors": gates}
    command = "python -m benchmarks.kang --shared DIR" + (" --flow" if given.flow else "")
    write(given.out, "Kang 2018: leave one cell type out", command, rows, told, record)


if __name__ == "__main__":
    main()
