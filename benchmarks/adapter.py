"""PertAdapt's ablation on measured effects: what the adapter, its mask and the adaptive loss are worth.

python -m benchmarks.adapter --shared DIR

On measured effects (Norman 2019: unseen singles and pairs; Replogle 2022: unseen singles, one fold), whether the adapter adds
to the same network without it, whether the mask by Gene Ontology does better than none and than as many random neighbours,
and whether weighing genes by their differential expression does better than the mean square. Norman alone (`--only Norman`)
takes some 25 minutes on two busy cores. The loss among the alignment losses of stage 2: configs/ablations/pertadapt.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pandas as pd

from benchmarks import crossval
from benchmarks.common import write
from scbig import baselines, priors
from scbig.data.conditions import genes_of
from scbig.data.splits import make

METRICS = ("pearson_delta", "pearson_delta_top20", "pearson_delta_ref_perturbed", "pds_l2", "mse")
THREE = ("network", "text", "annotation")
VARIANTS = {
    "full": {},
    "random mask": {"mask": "random"},
    "no mask": {"mask": "none"},
    "no adapter": {"adapter": False},
    "mean square": {"loss": "mse"},
    "neither": {"adapter": False, "loss": "mse"},
}
"""Options of ``scbig.baselines.adapter.fit`` by variant; the first is the model, the others lack one thing or two."""


def annotations(folder: Path, genes: list[str]) -> baselines.Embedding:
    """Vectors of measured and perturbed genes from their GO terms."""
    aligned = priors.align(
        priors.read_embedding(folder / crossval.MODALITIES["annotation"]),
        genes,
        priors.read_aliases(folder / "aliases.tsv.gz"),
    )
    return baselines.Embedding(aligned.genes, aligned.vectors, aligned.mask)


def screens(shared: Path, given: argparse.Namespace):
    """By name: effects, splits, options that all variants share, and baselines to stand beside."""
    norman = crossval.read(shared / "data" / "norman2019_effects.h5ad")
    singles = crossval.singles(norman)
    pairs = [c for c in norman.obs["condition"] if len(genes_of(c)) == 2 and set(genes_of(c)) <= set(singles)]
    alone = norman[norman.obs["condition"].isin(singles).to_numpy()].copy()
    both = norman[norman.obs["condition"].isin([*singles, *pairs]).to_numpy()].copy()
    replogle = crossval.read(shared / "data" / "replogle2022_k562_effects.h5ad", clip=5.0)
    halves = [make("additive", both.obs, {"val_fraction": 0.0, "test_fraction": 0.5}, s) for s in range(given.halves)]
    unseen = {"mean": ("mean", {}), "kernel_ridge": ("kernel_ridge", {"embedding": THREE})}
    paired = {"additive": ("additive", {}), "latent_additive": ("latent_additive", {"embedding": ()})}
    folds = list(crossval.folds(crossval.singles(replogle), 5, 1))[: given.folds]
    return {
        "Norman, unseen singles": (alone, list(crossval.folds(singles, 5, 1)), {"embedding": THREE}, unseen),
        "Norman, pairs": (both, halves, {"embedding": ()}, paired),
        "Replogle, unseen singles": (
            replogle,
            folds,
            {"embedding": THREE, "seeds": 1, "folds": 2, "epochs": 30},
            unseen,
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", default="../shared")
    parser.add_argument("--halves", type=int, default=1, help="random halves of Norman's pairs")
    parser.add_argument("--folds", type=int, default=1, help="of five, on Replogle")
    parser.add_argument("--only", default="", help="the screen whose name begins so; those finished are kept in --runs")
    parser.add_argument("--runs", default="runs/bench_adapter")
    parser.add_argument("--out", default="benchmarks/results/adapter")
    given = parser.parse_args()
    shared, kept = Path(given.shared), Path(given.runs)
    kept.mkdir(parents=True, exist_ok=True)
    rows, told, record = [["screen", "method", *METRICS, "s per fit"]], [], {}
    first = next(iter(VARIANTS))
    for name, (effects, splits, options, beside) in screens(shared, given).items():
        path = kept / f"{name.replace(', ', '_').replace(' ', '_')}_{len(splits)}.json"
        if name.startswith(given.only) and not path.exists():
            perturbed = sorted({g for c in effects.obs["condition"] for g in genes_of(c)})
            options = options | {
                "gene_embeddings": annotations(shared / "priors", sorted({*effects.var_names, *perturbed}))
            }
            methods = {v: ("adapter", options | more) for v, more in VARIANTS.items()} | beside
            sources = crossval.embeddings(shared / "priors", perturbed, THREE)
            table, seconds, notes = crossval.judged(effects, splits, methods, sources)
            fits = {method: s / len(splits) for method, s in seconds.items()}
            path.write_text(json.dumps({"table": table.to_dict("list"), "seconds": fits, "notes": notes}), "utf-8")
        if not path.exists():
            continue
        found = json.loads(path.read_text("utf-8"))
        table, fits = pd.DataFrame(found["table"]), found["seconds"]
        record[name] = {"seconds": fits, "notes": found["notes"], "splits": len(splits)}
        for method in (*VARIANTS, *beside):
            values = [crossval.with_interval(table, method, metric) for metric in METRICS]
            rows.append([name, method, *values, f"{fits[method]:.0f}"])
        first_metric = "pearson_delta" if "pairs" in name else "pearson_delta_ref_perturbed"
        for metric in (first_metric, "pearson_delta_top20"):
            for method in [*list(VARIANTS)[1:], *beside]:
                text, real = crossval.against(table, first, method, metric)
                verdict = "a real difference" if real else "no real difference"
                told.append(f"{name}: {first} against {method} in {metric}: {text}; {verdict}.")
    notes = [
        "full: the adapter over 64 modules of genes with a mask by GO similarity (eight nearest modules), adaptive loss. "
        "Every other variant differs from it in what it is named for; neither: without adapter and with mean square. "
        "Unseen singles read network, text and annotation embeddings, pairs the genes' identities.",
        "Splits: "
        + ", ".join(f"{name}: {each['splits']}" for name, each in record.items())
        + ". Norman's singles are held out by five folds, its pairs by random halves, Replogle's singles by five folds of "
        "which as many are run as is said, with one network, two inner folds and 30 epochs at most. Epochs and shrinkage "
        "are chosen within the training part.",
        *told,
    ]
    some = f" --only {given.only}" if given.only else ""
    command = f"python -m benchmarks.adapter --shared DIR{some}"
    write(given.out, "PertAdapt's ablation: adapter, mask, loss", command, rows, notes, record)


if __name__ == "__main__":
    main()
