"""Every baseline fitted on one split, its predictions written as any other tool's would be."""

from __future__ import annotations

import inspect
import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from scbig import baselines, priors, training
from scbig import config as configuration
from scbig.baselines.latent import Latent
from scbig.console import say, table
from scbig.data import splits
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.run import Run
from scbig.stages.score import read_judged, write_cells
from scbig.training.assemble import load_autoencoder

__all__ = ["EMBEDDING_FILES", "Task", "fit_baselines", "next_command", "plan", "read_embeddings"]

EMBEDDING_FILES = (".npz", ".parquet", ".csv", ".tsv", ".csv.gz", ".tsv.gz")
"""Endings of files in a folder of priors that are tried as embeddings."""
_RECORD = "baselines.json"


@dataclass(frozen=True)
class Task:
    """What the command was asked.

    Attributes:
        data: a screen of cells or a table of effects.
        split: a split file, or the name of a rule to make one by.
        out: the folder to write.
        only: baselines, or variants such as ``knn-all``; empty for all that can run.
        priors: a folder with embeddings, or empty.
        run: a run directory whose trained autoencoder serves ``scgen`` and ``knockout``; empty takes principal
            components.
        effects: the data is a table of effects and does not say so.
        trials: settings tried by Optuna, for the baselines that search.
        cells: write so many cells per condition instead of effects; 0 writes effects.
        force: replace what an earlier call wrote.
    """

    data: str
    split: str
    out: str
    only: tuple[str, ...] = ()
    priors: str = ""
    run: str = ""
    effects: bool = False
    trials: int = 0
    cells: int = 0
    force: bool = False


def fit_baselines(task: Task, settings: ConfigDict) -> dict[str, Any]:
    """Fits the baselines and writes their predictions of the test conditions.

    Writes ``NAME.h5ad`` for each, ``split.csv``, ``baselines.json`` and, where settings were searched,
    ``NAME_study.csv``: all of them or nothing.

    Args:
        task: what to do.
        settings: how to read the screen and make the split; the seed.

    Returns:
        What ``baselines.json`` holds.

    Raises:
        InputError: anything wrong with the request, the data, the split or the priors.
    """
    _refuse(task)
    adata = read_judged(task.data, settings, task.effects)
    is_cells = adata.uns["scbig"]["kind"] != "effects"
    if task.cells and not is_cells:
        raise InputError(f"--cells needs a screen of cells, and {task.data} holds effects")
    split = _split(task, adata, settings)
    tested = _tested(adata, split)
    told = adata.uns["scbig"]
    if told.get("split_sha256", split.sha256) != split.sha256:
        say(
            f"note: the genes of {task.data} were chosen on the training cells of another split, {told.get('split', '')}"
        )
    perturbed = sorted({g for c in adata.obs["condition"].astype(str).unique() for g in genes_of(c)})
    embeddings, coverage, others = read_embeddings(task.priors, perturbed) if task.priors else ({}, [], {})
    if task.run and not is_cells:
        raise InputError(f"--run needs a screen of cells, and {task.data} holds effects")
    if coverage:
        table(coverage)
    if others:
        say(f"not read as embeddings: {some(others)}")
    variants, not_run = plan(task.only, tuple(embeddings))
    given: dict[str, Any] = {"embeddings": embeddings}
    if is_cells and any(baseline in baselines.ON_LATENT for baseline, _ in variants.values()):
        given["latent"] = _latent(task.run, adata, split, settings.seed)
    fitted = (baselines.training_data if is_cells else baselines.training_data_from_effects)(adata, split, **given)
    record: dict[str, Any] = {
        "data": task.data, "split": {"name": split.name, "rule": split.rule, "sha256": split.sha256},
        "seed": settings.seed, "trials": task.trials, "embeddings": coverage, "not_embeddings": others,
        "baselines": {}, "not_run": not_run,
    }  # fmt: skip
    with atomic(task.out) as temporary:
        temporary.mkdir()
        for name, (baseline, options) in variants.items():
            _one(name, baseline, options, fitted, adata, split, tested, task, settings, temporary, record)
        if not record["baselines"]:
            raise InputError(f"no baseline can predict a test condition: {_reasons(record['not_run'])}")
        split.save(temporary / "split.csv")
        text = json.dumps(record, indent=1, default=_plain)
        (temporary / _RECORD).write_text(text + "\n", encoding="utf-8")
    for name, reason in record["not_run"].items():
        say(f"{name}: not run: {reason}")
    return record


def next_command(task: Task, names: Sequence[str], changes: Sequence[str] = ()) -> str:
    """The call of ``scbig evaluate`` that judges what was written."""
    words = ["scbig", "evaluate"]
    for name in names:
        words += ["--predictions", str(Path(task.out, f"{name}.h5ad"))]
    words += ["--data", task.data, "--split", str(Path(task.out, "split.csv"))]
    words += ["--effects"] if task.effects else []
    words += ["--out", str(Path(task.out, "judged"))]
    return shlex.join(words + [f"--config.{change}" for change in changes if not change.startswith("split.")])


def _latent(folder: str, adata: ad.AnnData, split: Split, seed: int) -> Latent:
    """The latent of a trained run, or of principal components."""
    if not folder:
        return baselines.fit_latent(adata, split, seed=seed)
    run = Run(folder)
    if not run.path("gcae/params").exists():
        raise InputError(f"no trained autoencoder in {folder}: run `scbig pretrain --workdir {folder}` first")
    trained_on = Split.load(run.path("split.csv"))
    if trained_on.sha256 != split.sha256:
        raise InputError(
            f"the autoencoder in {folder} was trained on another split ({trained_on.name}) and may have seen test cells: "
            f"give --split {run.path('split.csv')}"
        )
    genes = set(map(str, adata.var_names))
    modules = set(map(str, pd.read_csv(run.path("modules.csv"), keep_default_na=False)["gene"]))
    if genes != modules:
        raise InputError(
            f"the autoencoder in {folder} knows other genes ({some(sorted(genes ^ modules))}): give --data "
            f"{run.path('prepared.h5ad')}"
        )
    auto = load_autoencoder(run, configuration.read_json(run.path("config.json")), adata.var_names)
    return baselines.latent_of(
        adata, split, partial(training.encode_all, auto), partial(training.decode_all, auto), seed=seed
    )


def plan(only: Sequence[str], sources: Sequence[str]) -> tuple[dict[str, tuple[str, dict[str, Any]]], dict[str, str]]:
    """Which baselines to fit, with which options, by the name of what they predict.

    Baselines on embeddings are fitted once per source (``knn-string``) and once on all together (``knn-all``).

    Args:
        only: baselines or variants; all when empty.
        sources: names of the embeddings.

    Returns:
        Name to baseline and options; and the baselines that cannot run, with the reason.

    Raises:
        InputError: a name that is neither, or nothing left to run.
    """
    variants: dict[str, tuple[str, dict[str, Any]]] = {}
    not_run = {}
    for name in baselines.REGISTRY:
        if name not in baselines.ON_EMBEDDINGS:
            variants[name] = (name, {})
            continue
        if name in baselines.WITHOUT:
            variants[name] = (name, dict(baselines.WITHOUT[name]))
        elif not sources:
            not_run[name] = "it reads embeddings: name a folder of them with --priors"
        for source in sources:
            variants[f"{name}-{source}"] = (name, {"embedding": source})
        if len(sources) > 1:
            variants[f"{name}-all"] = (name, {"embedding": tuple(sources)})
    known = [*baselines.REGISTRY, *(name for name in variants if name not in baselines.REGISTRY)]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise InputError(f"--only: no baseline {some(unknown)}; there are {', '.join(known)}")
    if only:
        variants = {name: v for name, v in variants.items() if name in only or v[0] in only}
        not_run = {name: reason for name, reason in not_run.items() if name in only}
    if not variants:
        raise InputError(f"none of the baselines asked for can run: {_reasons(not_run)}")
    return variants, not_run


def read_embeddings(
    folder: str, perturbed: Sequence[str]
) -> tuple[dict[str, baselines.Embedding], list[list[str]], dict[str, str]]:
    """Every file of a folder that reads as an embedding of some of the perturbed genes.

    Names go through ``aliases.tsv.gz`` where the folder has one, and approved symbols are taken from
    ``gene_ids.tsv.gz``.

    Args:
        folder: with files that end in one of ``EMBEDDING_FILES``.
        perturbed: genes (or drugs) to find.

    Returns:
        Embeddings of the perturbed genes by source, named as the file without endings and a leading ``emb_``; a
        table of their coverage with a header; and the files that are no embedding of these genes, with why.

    Raises:
        InputError: no such folder, two files of one name, or no embedding that knows a perturbed gene.
    """
    place = Path(folder)
    if not place.is_dir():
        raise InputError(f"no folder {folder}; check --priors")
    aliases = _aliases(place)
    found: dict[str, baselines.Embedding] = {}
    rows, others = [["embedding", "perturbed genes known", "dims", "through an alias", "missing"]], {}
    for file in sorted(f for f in place.iterdir() if f.name.lower().endswith(EMBEDDING_FILES)):
        if file.name in ("aliases.tsv.gz", "gene_ids.tsv.gz"):
            continue
        name = file.name
        for ending in sorted(EMBEDDING_FILES, key=len, reverse=True):
            if name.lower().endswith(ending):
                name = name[: -len(ending)].removeprefix("emb_")
                break
        try:
            aligned = priors.align(priors.read_embedding(file), perturbed, aliases)
        except InputError as problem:
            # A folder of priors holds networks and texts too: what is no embedding is told of, not an error.
            others[file.name] = str(problem)
            continue
        if name in found or name == "all":
            raise InputError(f"{file}: there is another embedding '{name}' (or it is called all); rename one of them")
        found[name] = baselines.Embedding(aligned.genes, aligned.vectors, aligned.mask)
        seen = aligned.coverage
        rows.append(
            [name, f"{seen.n_found} of {seen.n_genes}", str(aligned.vectors.shape[1]), str(len(seen.renamed)),
             some(seen.missing, 3)]
        )  # fmt: skip
    if not found:
        why = f": {some((f'{name} ({reason})' for name, reason in others.items()), 2)}" if others else ""
        raise InputError(f"no embedding in {folder} knows any of the {len(perturbed)} perturbed genes{why}")
    return found, rows, others


def _refuse(task: Task) -> None:
    """What can be refused before anything is read."""
    out = Path(task.out)
    if out.exists() and not task.force:
        raise InputError(f"{out} exists; choose another --out or replace it with --force")
    if out.exists() and not (out / _RECORD).is_file():
        raise InputError(f"{out} was not written by this command and is not replaced; choose another --out")
    if task.trials < 0 or task.cells < 0:
        raise InputError(f"--trials {task.trials} and --cells {task.cells} cannot be negative")
    if task.trials and find_spec("optuna") is None:
        raise InputError("--trials needs Optuna: pip install 'scbig[tune]'")
    unknown = [name for name in task.only if name.split("-")[0] not in baselines.REGISTRY]
    if unknown:
        raise InputError(f"--only: no baseline {some(unknown)}; there are {', '.join(baselines.REGISTRY)}")


def _split(task: Task, adata: ad.AnnData, settings: ConfigDict) -> Split:
    """The split in a file, or one made here by a rule."""
    if Path(task.split).is_file():
        split = Split.load(task.split)
    elif task.split in splits.RULES:
        split = splits.make(task.split, adata.obs, settings.split, settings.seed)
    else:
        raise InputError(f"--split {task.split}: no such file, and the rules are {', '.join(splits.RULES)}")
    split.assign(adata.obs)
    return split


def _tested(adata: ad.AnnData, split: Split) -> pd.DataFrame:
    """Condition and context of what is to be predicted."""
    condition = adata.obs["condition"].astype(str).to_numpy()
    context = adata.obs["context"].astype(str).to_numpy() if "context" in adata.obs else np.full(adata.n_obs, "all")
    rows = (split.assign(adata.obs) == "test") & (condition != CONTROL)
    if not rows.any():
        raise InputError(f"the split '{split.name}' has no test condition to predict")
    pairs = pd.DataFrame({"condition": condition[rows], "context": context[rows]}).drop_duplicates()
    return pairs.sort_values(["condition", "context"], ignore_index=True)


def _one(
    name: str,
    baseline: str,
    options: Mapping[str, Any],
    fitted: baselines.TrainingData,
    adata: ad.AnnData,
    split: Split,
    tested: pd.DataFrame,
    task: Task,
    settings: ConfigDict,
    folder: Path,
    record: dict[str, Any],
) -> None:
    """Fits one baseline, writes what it predicts and puts it on record."""
    start = time.monotonic()
    takes = inspect.signature(baselines.REGISTRY[baseline]).parameters
    asked = {"seed": settings.seed} | ({"trials": task.trials} if task.trials else {})
    options = dict(options) | {option: value for option, value in asked.items() if option in takes}
    try:
        model = replace(baselines.fit(baseline, fitted, **options), name=name)
    except InputError as problem:
        # One baseline that these data do not suit must not cost the others.
        record["not_run"][name] = str(problem)
        return
    conditions, contexts = list(tested["condition"]), list(tested["context"])
    if task.cells:
        train = np.asarray(split.assign(adata.obs)) == "train"
        controls = adata[train & (adata.obs["condition"].astype(str) == CONTROL).to_numpy()]
        predicted, skipped = baselines.as_cells(model, conditions, controls, task.cells, settings.seed, contexts)
    else:
        predicted, skipped = baselines.as_effects(model, conditions, contexts)
    if len(skipped) == len(tested):
        ((reason, _),) = Counter(s.reason for s in skipped).most_common(1)
        more = len({s.reason for s in skipped}) - 1
        record["not_run"][name] = reason + (f" (and {more} other reasons)" if more else "")
        return
    told = adata.uns["scbig"]
    predicted.uns["scbig"] |= {k: told[k] for k in ("normalization", "target_sum") if k in told}
    predicted.uns["scbig"]["split_sha256"] = split.sha256
    write_cells(predicted, folder / f"{name}.h5ad")
    if model.study:
        pd.DataFrame(model.study).to_csv(folder / f"{name}_study.csv", index=False)
    seconds = time.monotonic() - start
    record["baselines"][name] = {
        "baseline": baseline, "options": options, "notes": list(model.notes),
        "predicted": len(tested) - len(skipped), "seconds": round(seconds, 2),
        "study": f"{name}_study.csv" if model.study else "",
        "skipped": [{"condition": s.condition, "context": s.context, "reason": s.reason} for s in skipped],
    }  # fmt: skip
    note = "; ".join(model.notes)
    say(f"{name}: {len(tested) - len(skipped)} of {len(tested)}, {seconds:.1f} s{'; ' if note else ''}{note}")


def _aliases(folder: Path) -> priors.AliasTable:
    file, ids = folder / "aliases.tsv.gz", folder / "gene_ids.tsv.gz"
    if not file.is_file():
        return priors.AliasTable.empty()
    symbols = priors.read_gene_ids(ids, "ensgene").values() if ids.is_file() else ()
    return priors.read_aliases(file, symbols=symbols)


def _reasons(not_run: Mapping[str, str]) -> str:
    return some((f"{name} ({reason})" for name, reason in not_run.items()), 3)


def _plain(value: Any) -> Any:
    """What JSON does not know of NumPy."""
    return value.item() if isinstance(value, np.generic) else list(value)
