"""Baselines by cross-validation on a table of effects: folds of conditions, all scored by the judge."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from scbig import baselines, data, evaluation, priors
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.evaluation.statistics import bootstrap_weights, compare, interval, paired_tests
from scbig.rng import generator

MODALITIES = {
    "network": "emb_string_netmf128.npz",
    "text": "emb_refseq_lsa256.npz",
    "annotation": "emb_go_svd128.npz",
    "tissue": "gtex_tissue_log1p_tpm.tsv.gz",
    "family": "pfam37.gmt.gz",
}
"""What each kind of embedding is made of."""


def embeddings(folder: Path, genes: Sequence[str], kinds: Sequence[str]) -> dict[str, baselines.Embedding]:
    """Vectors of the perturbed genes by modality."""
    aliases = priors.read_aliases(folder / "aliases.tsv.gz")
    out = {}
    for kind in kinds:
        path = folder / MODALITIES[kind]
        if kind == "tissue":
            vectors = priors.tissue_profile(priors.read_tissue(path))
        elif kind == "family":
            vectors = priors.embed_gene_sets(priors.read_gmt(path), dim=64)
        else:
            vectors = priors.read_embedding(path)
        aligned = priors.align(vectors, genes, aliases)
        out[kind] = baselines.Embedding(aligned.genes, aligned.vectors, aligned.mask)
    return out


def folds(conditions: Sequence[str], n: int, repeats: int, always: Sequence[str] = ()) -> Iterator[Split]:
    """Splits that hold out every condition once per repeat; ``always`` stay in training."""
    for repeat in range(repeats):
        order = generator(repeat, "folds of a benchmark").permutation(sorted(conditions))
        for fold in range(n):
            held = set(order[fold::n])
            rows = [(c, "test" if c in held else "train", "") for c in [*conditions, *always]]
            yield Split(
                f"{repeat}.{fold}", "file", repeat, pd.DataFrame(rows, columns=["condition", "part", "stratum"])
            )


def judged(
    effects: AnnData,
    splits: Sequence[Split],
    methods: Mapping[str, tuple[str, Mapping[str, object]]],
    sources: Mapping[str, baselines.Embedding],
) -> tuple[pd.DataFrame, dict[str, float], dict[str, list[str]]]:
    """Scores of the methods over all splits.

    Returns:
        Columns method, condition, context, stratum, metric, value, where a condition tested in several splits has the
        mean of its scores; seconds of fitting and predicting by method; and the notes of the fits.
    """
    tables, seconds, notes = [], dict.fromkeys(methods, 0.0), {name: [] for name in methods}
    for split in splits:
        fitted = baselines.training_data_from_effects(effects, split, sources)
        tested = [c for c in split.conditions("test") if c != CONTROL]
        predicted, reasons = {}, {}
        for name, (baseline, options) in methods.items():
            start = time.perf_counter()
            model = baselines.fit(baseline, fitted, **options)
            table, skipped = baselines.as_effects(model, tested)
            seconds[name] += time.perf_counter() - start
            notes[name] += list(model.notes)
            reasons |= {(name, s.condition, s.context): s.reason for s in skipped}
            if table.n_obs:
                predicted[name] = table
        scores = evaluation.evaluate(predicted, effects, split, draws=2, references=(), reasons=reasons)
        tables.append(scores.per_condition)
        print(f"split {split.name}: {time.perf_counter() - start:.0f} s", flush=True)
    every = pd.concat(tables)
    keys = ["method", "condition", "context", "stratum", "metric"]
    return every.groupby(keys, sort=False)["value"].mean().reset_index(), seconds, notes


def with_interval(table: pd.DataFrame, method: str, metric: str) -> str:
    """Mean over conditions and its bootstrap 95% interval."""
    rows = table[(table["method"] == method) & (table["metric"] == metric)].sort_values(["condition", "context"])
    if not len(rows):
        return "–"
    values = rows["value"].to_numpy(np.float64)[:, None]
    (mean,), (low,), (high,) = interval(values, bootstrap_weights(len(values)))
    return f"{mean:.3f} ({low:.3f} … {high:.3f})"


def against(table: pd.DataFrame, method: str, other: str, metric: str) -> tuple[str, bool]:
    """The paired difference of two methods with its interval and p, and whether it excludes zero."""
    gap = compare(table, method, other, metric)
    if not gap.n:
        return "–", False
    p = "< 0.001" if gap.p < 0.001 else f"= {gap.p:.3f}"
    return f"{gap.mean:+.3f} ({gap.low:+.3f} … {gap.high:+.3f}), p {p}", gap.real


def better(table: pd.DataFrame, other: str, metric: str, least: float = 0.002) -> list[str]:
    """Methods that are better than another by at least ``least``, by the judge's corrected test."""
    rows = table.sort_values(["condition", "context"])
    index = pd.MultiIndex.from_frame(rows[["condition", "context"]].drop_duplicates())
    found = paired_tests(rows, {"all": index}, [other], (metric,))
    return found[found["real"] & (found["mean"] <= -least)]["second"].tolist()


def singles(effects: AnnData) -> list[str]:
    """Conditions of one perturbed gene."""
    return [c for c in effects.obs["condition"].astype(str) if len(genes_of(c)) == 1]


def read(path: Path, clip: float = 0.0) -> AnnData:
    """A table of effects, values clipped to ± ``clip`` where that is not 0."""
    effects = data.effects_table(path)
    if clip:
        effects.X = np.clip(effects.X, -clip, clip)
    return effects
