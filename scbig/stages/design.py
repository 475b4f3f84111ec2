"""The command ``design``: a list of perturbations for the next screen, from a trained run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from scbig.analysis import design as plan
from scbig.analysis import interaction_model
from scbig.analysis.interaction_predicted import left_out
from scbig.analysis.interactions import pairs_of, score_cells
from scbig.anchor import Anchor
from scbig.console import say
from scbig.console import table as print_table
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.data.source import told_damage
from scbig.data.splits import Split
from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.run import Run
from scbig.training import assemble

__all__ = ["Task", "design"]

_SHOWN = 10  # rows printed


@dataclass(frozen=True)
class Task:
    """What is asked for.

    Attributes:
        workdir: a trained run.
        by: ``interaction``, ``target`` or ``uncertainty``.
        out: the .csv to write.
        candidates: ``pairs``, ``singles``, or a file with one condition per line.
        genes: candidates of these genes only.
        target: cells of the wanted state, .h5ad.
        n: conditions to choose.
        context: where the run has several.
        force: replace the file.
    """

    workdir: str
    by: str
    out: str
    candidates: str = "pairs"
    genes: tuple[str, ...] = ()
    target: str = ""
    n: int = 24
    context: str = ""
    force: bool = False


def design(task: Task) -> pd.DataFrame:
    """Ranks candidates, writes the list and prints its head.

    Raises:
        InputError: what is asked for contradicts itself or the run; nothing is written.
    """
    _check(task)
    run = Run(Path(task.workdir))
    if not run.path("config.json").exists():
        raise InputError(f"{task.workdir} is not a run directory (no config.json); train one with `scbig run`")
    run.require(("prepare", "cluster", "train"))
    anchor = Anchor.load(run.path("flow/anchor.npz"))
    if anchor is None:
        raise InputError(f"{task.workdir} has no anchor to predict by: train one with --config.anchor.method=auto")
    context = _context(task, anchor)
    path = run.path("prepared.h5ad")
    with told_damage(str(path)), h5py.File(path, "r") as file:
        obs = ad.io.read_elem(file["obs"])
    here = obs["context"].astype(str).to_numpy() == context
    measured = set(obs["condition"].astype(str)[here])
    target = _target(task.target, anchor, context, run) if task.by == "target" else None
    names = _candidates(task, anchor, measured, context)
    model = None
    if task.by == "interaction":
        table, model = _interaction(task, run, anchor, names, context)
    elif target is not None:
        kinds = {anchor.kind(name, context) for name in names}
        table = plan.by_target(anchor, names, context, task.n, target, left_out(anchor, sorted(kinds)))
    else:
        table = plan.by_uncertainty(anchor, names, context, task.n)
    with atomic(task.out) as temporary:
        table.to_csv(temporary, index=False)
    _tell(task, table, len(names), model)
    return table


def _check(task: Task) -> None:
    if Path(task.out).suffix != ".csv":
        raise InputError(f"--out {task.out} must end in .csv")
    if Path(task.out).exists() and not task.force:
        raise InputError(f"{task.out} exists; choose another --out or replace it with --force")
    if task.n < 1:
        raise InputError(f"--n {task.n}: at least one condition is needed")
    if task.by == "target" and not task.target:
        raise InputError("--by target needs --target CELLS.h5ad, cells of the wanted state")
    if task.by != "target" and task.target:
        raise InputError(f"--target goes with --by target, not with --by {task.by}")
    if task.by not in ("interaction", "target", "uncertainty"):
        raise InputError(f"--by {task.by}: interaction, target or uncertainty is expected")
    if task.by == "interaction" and task.candidates == "singles":
        raise InputError("--by interaction ranks pairs: take --candidates pairs, or a file of pairs")


def _context(task: Task, anchor: Anchor) -> str:
    known = sorted(set(anchor.data.contexts))
    if task.context and task.context not in known:
        raise InputError(f"--context {task.context}: the run has {some(known)}")
    if not task.context and len(known) > 1:
        raise InputError(f"this run has several contexts; choose one with --context: {', '.join(known)}")
    return task.context or known[0]


def _candidates(task: Task, anchor: Anchor, measured: set[str], context: str) -> list[str]:
    if task.candidates == "pairs":
        found, what = plan.pairs(anchor, measured, context), "pair of genes measured alone"
    elif task.candidates == "singles":
        found, what = plan.singles(anchor, measured), "gene of an embedding"
        if not anchor.data.embeddings:
            raise InputError("this run has no embeddings, so nothing is known of genes that were not perturbed")
    else:
        found, what = _from_file(task, anchor, measured, context), "condition of the file"
    found = plan.within(found, task.genes)
    if not found:
        raise InputError(f"no candidates: every {what} was measured already")
    return found


def _from_file(task: Task, anchor: Anchor, measured: set[str], context: str) -> list[str]:
    path = Path(task.candidates)
    if not path.is_file():
        raise InputError(f"--candidates {task.candidates}: neither pairs, nor singles, nor a file")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as problem:
        raise InputError(f"--candidates {path} is not a text file with one condition per line") from problem
    names = list(dict.fromkeys(join(genes_of(line)) for line in lines if line and not line.startswith("#")))
    names = [name for name in names if name != CONTROL and genes_of(name)]
    unknown = sorted({g for name in names for g in genes_of(name)} - plan.known_genes(anchor))
    if unknown:
        raise InputError(f"{path}: {some(unknown)} is neither measured nor in an embedding of the run")
    if task.by == "interaction":
        able = set(anchor.data.table(context))
        odd = [n for n in names if len(genes_of(n)) != 2 or not all(join([g]) in able for g in genes_of(n))]
        if odd:
            raise InputError(f"{path}: {some(odd)} is not a pair of genes that were each measured alone")
    known = [name for name in names if name in measured]
    if known:
        say(f"design: {some(known)} of {path} was measured already and is left out")
    return [name for name in names if name not in measured]


def _target(file: str, anchor: Anchor, context: str, run: Run) -> np.ndarray:
    """Mean of the target cells minus mean of the training controls; NaN for genes that the file lacks."""
    if not Path(file).is_file():
        raise InputError(f"--target {file} is not there")
    with told_damage(file):
        cells = ad.read_h5ad(file)
    with h5py.File(run.path("prepared.h5ad"), "r") as prepared:
        about = ad.io.read_elem(prepared["uns/scbig"])
    said = cells.uns.get("scbig", {})
    for name in ("normalization", "target_sum"):
        if name in about and str(said.get(name)) != str(about[name]):
            raise InputError(
                f"--target {file}: uns['scbig']['{name}'] is {said.get(name, 'not given')}, the run's is {about[name]}; "
                "normalise the cells as the run did (log1p of counts scaled to target_sum) and say so there"
            )
    if not cells.var_names.is_unique:
        raise InputError(f"--target {file}: gene names are not unique")
    place = cells.var_names.get_indexer(list(anchor.data.genes))
    if (place >= 0).sum() < len(place) / 2:
        raise InputError(f"--target {file} has {(place >= 0).sum()} of the run's {len(place)} genes; half are needed")
    if cells.n_obs < 1:
        raise InputError(f"--target {file} has no cells")
    mean = np.asarray(cells.X.mean(axis=0), np.float64).ravel()
    if not np.isfinite(mean).all():
        raise InputError(f"--target {file}: X holds values that are not finite")
    found = np.full(len(place), np.nan)
    found[place >= 0] = mean[place[place >= 0]]
    if "condition" in cells.obs and cells.obs["condition"].nunique() > 1:
        say(
            f"design: the target is the mean of all {cells.n_obs:,} cells, {cells.obs['condition'].nunique()} conditions"
        )
    return found - np.asarray(anchor.data.control_mean[context], np.float64)


def _interaction(task: Task, run: Run, anchor: Anchor, names: list[str], context: str):
    """Ranks pairs with what the measured pairs of training and validation teach."""
    adata = ad.read_h5ad(run.path("prepared.h5ad"))
    part = np.asarray(Split.load(run.path("split.csv")).assign(adata.obs))
    condition = adata.obs["condition"].astype(str).to_numpy()
    usable = (part != "test") | (condition == CONTROL)
    usable &= adata.obs["context"].astype(str).to_numpy() == context
    model = None
    if len(pairs_of(condition[usable])) >= interaction_model.FEWEST:
        scores = score_cells(adata[usable], seed=anchor.seed)
        if "relative" in scores:
            modules = assemble.load_modules(run, adata.var_names)
            label = dict(zip(map(str, modules.genes), map(int, modules.module), strict=True))
            departures = dict(zip(scores["condition"], scores["relative"].astype(float), strict=True))
            model = interaction_model.fit(departures, anchor.data, label, context, anchor.seed)
    return plan.by_interaction(anchor, names, context, task.n, left_out(anchor), model), model


def _tell(task: Task, table: pd.DataFrame, n: int, model) -> None:
    head = [["rank", "condition", "score", "90% interval", "nearest measured"]]
    for row in table.head(_SHOWN).to_dict("records"):
        bounds = "–" if np.isnan(row["low"]) else f"{row['low']:.2f} … {row['high']:.2f}"
        known = f"{row['nearest measured']} ({row['cosine to it']:.2f})"
        head.append([str(row["rank"]), row["condition"], f"{row['score']:.3f}", bounds, known])
    print_table(head)
    say(f"design: {table['condition'].iloc[0]} {table['reason'].iloc[0]}")
    if model is not None:
        say(
            f"design: learned from {model.n} measured pairs; left out, the stronger half was told from the weaker with AUROC "
            f"{model.auroc:.2f} ({model.auroc_low:.2f} … {model.auroc_high:.2f})"
        )
    weak = plan.weakness(table, model, task.by)
    if weak:
        say(f"design: weak evidence: {weak}")
    say(
        f"design: {len(table)} of {n:,} candidates, {int(table['cells so far'].iloc[-1]):,} cells at the screen's median"
    )
    say(f"list     {task.out}")
