"""The stages that answer: sample, evaluate and report; and the judging of anyone's predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from scbig import baselines, data, evaluation, predict, training
from scbig.console import say
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.splits import Split
from scbig.data.text import portable
from scbig.errors import InputError
from scbig.files import atomic
from scbig.run import Run
from scbig.stages import card
from scbig.stages.common import aliases, load_prepared, prior_file
from scbig.training.vocabulary import IDENTITY, group_cells

__all__ = ["evaluate", "judge", "read_judged", "report", "sample", "write_cells"]


def sample(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Samples cells of every test condition."""
    cells = predict.cell_table(run)
    # One row of each suffices to know the groups, however many cells there are.
    _, groups = group_cells(cells[np.asarray(cells["part"] == "test")].drop_duplicates())
    predictor = predict.load(run.folder)
    known = [group for group in groups if not predictor.vocabulary.unknown(genes_of(group.condition))]
    skipped = sorted({group.condition for group in groups} - {group.condition for group in known})
    if not known:
        raise InputError(
            f"no source knows any test condition, such as {groups[0].condition}; see --config.priors.condition"
        )
    if skipped:
        say(f"sample: no embedding for {len(skipped)} test conditions: {', '.join(skipped)}")
    predictor.write(
        run.path("predictions/test.h5ad"),
        [group.condition for group in known],
        settings.sample.n_cells,
        context=[group.context for group in known],
    )
    remarks |= {"conditions": len(known), "without_embedding": skipped}


def write_cells(cells: ad.AnnData, path: str | Path) -> None:
    """Writes cells in memory, whole or not at all."""
    with atomic(path) as temporary, portable():
        cells.write_h5ad(temporary, compression="lzf")


def _embeddings(settings: ConfigDict, perturbations: Sequence[str]) -> dict[str, baselines.Embedding]:
    """Vectors of the perturbed genes for the linear baseline, by source."""
    from scbig import priors

    found = {}
    for name in settings.priors.condition:
        if name != IDENTITY:
            each = priors.align(priors.read_embedding(prior_file(settings, name)), perturbations, aliases(settings))
            found[Path(name).name.split(".")[0]] = baselines.Embedding(each.genes, each.vectors, each.mask)
    return found


def _judged(
    methods: Mapping[str, ad.AnnData | Sequence[ad.AnnData]],
    adata: ad.AnnData,
    split: Split,
    settings: ConfigDict,
    embeddings: dict[str, baselines.Embedding],
) -> evaluation.Scores:
    """The methods beside the baselines of the configuration, on the same cells."""
    cells = adata.uns.get("scbig", {}).get("kind") != "effects"
    make = baselines.training_data if cells else baselines.training_data_from_effects
    part = split.assign(adata.obs)
    tested = (part == "test") & (adata.obs["condition"].astype(str) != CONTROL).to_numpy()
    context = adata.obs["context"].astype(str) if "context" in adata.obs else "all"
    pairs = adata.obs[["condition"]].astype(str).assign(context=context)[tested]
    pairs = pairs.drop_duplicates().sort_values(["condition", "context"])
    names = list(settings.evaluation.baselines)
    if split.rule == "cells":
        # Seen conditions: the bar is the condition's own training mean, not a guess from other conditions.
        names = ["control", "mean", "condition_mean"]
    # Where a baseline's own predictions are given, those count; without any embedding there is nothing to fit on.
    idle = {name for name in baselines.ON_EMBEDDINGS if name not in baselines.WITHOUT and not embeddings}
    names = [name for name in names if name not in methods and name not in idle]
    options = {"linear": {"embedding": settings.evaluation.embedding}} if settings.evaluation.embedding else {}
    effects, skipped, _ = baselines.predictions(
        names, make(adata, split, embeddings), list(pairs["condition"]), list(pairs["context"]), options
    )
    reasons = {(name, s.condition, s.context): s.reason for name, each in skipped.items() for s in each}
    # A baseline that can predict nothing here has no column, but its reasons are kept.
    answered = {name: each for name, each in effects.items() if each.n_obs}
    given = {name: each for name, each in methods.items() if isinstance(each, ad.AnnData)}
    of_effects = [name for name, each in given.items() if each.uns.get("scbig", {}).get("kind") == "effects"]
    return evaluation.evaluate(
        {**methods, **answered}, adata, split, n_cells=settings.evaluation.n_cells, seed=settings.seed,
        shifted=(*answered, *of_effects), reasons=reasons, ceiling_draws=settings.evaluation.ceiling_draws,
    )  # fmt: skip


def evaluate(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Scores the run's predictions beside the baselines."""
    adata, split, _ = load_prepared(run)
    predicted = ad.read_h5ad(run.path("predictions/test.h5ad"))
    module = pd.read_csv(run.path("modules.csv"), keep_default_na=False).set_index("gene")["module"]
    adata.var["module"] = module.reindex(adata.var_names).to_numpy()
    perturbations = sorted({gene for label in adata.obs["condition"].astype(str).unique() for gene in genes_of(label)})
    scores = _judged({"scBIG": predicted}, adata, split, settings, _embeddings(settings, perturbations))
    with atomic(run.path("evaluation")) as temporary:
        temporary.mkdir()
        evaluation.save(scores, temporary)
    remarks |= {"pearson_delta": scores.value("scBIG", "pearson_delta")}


def report(run: Run, settings: ConfigDict, remarks: dict) -> None:
    """Writes report.html and the model card from what the earlier stages left."""
    scores = evaluation.load(run.path("evaluation"))
    stages = run.provenance["stages"]
    extra: dict[str, object] = {}
    for stage, column in (("train", "score"), ("pretrain", "score")):
        lines = [line for line in training.read_metrics(run.folder, stage) if line[column] is not None]
        if lines:
            steps = [line["step"] for line in lines]
            title = "Training of the flow" if stage == "train" else "Training of the autoencoder"
            label = "distance to held-out cells (relative)" if stage == "train" else "held-out reconstruction error"
            kept = stages[stage]["remarks"]["best_step"]
            extra[title] = evaluation.Curves(
                {"held out": (steps, [line[column] for line in lines])}, y_label=label, mark=kept
            )
    rests = _rests_table(run, scores)
    if rests is not None:
        extra["What each prediction rests on"] = rests
    audit = json.loads(run.path("audit.json").read_text(encoding="utf-8"))
    extra["Gene modules"] = _module_summary(audit)
    coverage = stages["cluster"]["remarks"].get("coverage", [])
    extra["Priors"] = pd.DataFrame(
        [{"source": c["source"], "genes found": f"{c['n_found']} of {c['n_genes']}",
          "perturbed genes found": f"{c['n_targets_found']} of {c['n_targets']}"} for c in coverage]
    )  # fmt: skip
    extra["Time"] = {name: f"{stage['seconds']:.0f} s" for name, stage in stages.items()}
    text = evaluation.render(scores, primary="scBIG", title=f"{settings.name}: predicted perturbations", extra=extra)
    with atomic(run.path("report.html")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    card.write(run)


def _rests_table(run: Run, scores: evaluation.Scores) -> pd.DataFrame | None:
    """What predictions rest on, as the report shows it."""
    table = card.rests_on(run, scores)
    if table is None:
        return None
    names = {
        "value": "pearson_delta reached",
        "inside": "genes in the 90% interval",
        "skill": "cross-validated skill",
        "mean_gate": "mean gate",
        "shape_gate": "shape gate",
    }
    shown = ("condition", "context", "kind", "basis", "skill", "kept", "mean_gate", "shape_gate", "value", "inside")
    return table[[name for name in shown if name in table]].rename(columns=names)


def _module_summary(audit: dict) -> dict[str, str]:
    """The audit in a few lines."""
    sizes = audit["sizes"]
    lines = {"modules": f"{audit['n_modules']} of {min(sizes)}–{max(sizes)} genes"}
    # Without interactions there is neither ratio nor z.
    if (ppi := audit.get("ppi")) and None not in (ppi["fold"], ppi["z"]):
        lines["interactions within modules"] = f"{ppi['fold']:.1f} times random modules, z = {ppi['z']:.1f}"
    return lines


def judge(
    predictions: Sequence[str],
    data_file: str,
    split_file: str,
    out: str,
    settings: ConfigDict,
    effects: bool = False,
    kind: str = "",
) -> list[list[str]]:
    """Scores predictions of any tool; returns the table for the console.

    Args:
        predictions: files, each optionally as ``NAME=FILE``; files of the same name are seeds of one method.
        data_file: the screen, prepared or readable with the settings, or a table of effects.
        split_file: a split file.
        out: where scores and report go.
        settings: how to read the screen, and which baselines.
        effects: whether the data is a table of effects, where the file does not say so.
        kind: ``cells`` or ``effects``, of predictions that do not say which they are.
    """
    adata = read_judged(data_file, settings, effects)
    split = Split.load(split_file)
    methods: dict[str, list[ad.AnnData]] = {}
    for each in predictions:
        name, equals, file = each.partition("=")
        if "/" in name:  # an = in a path, as in the folders of a sweep
            name, equals, file = "", "", each
        if not equals and Path(file).stem in methods:
            raise InputError(
                f"two predictions are called {Path(file).stem}; name them with --predictions NAME=FILE (files of one "
                "NAME are seeds of one method)"
            )
        if not Path(file).exists():
            raise InputError(f"no file {file}; check --predictions")
        methods.setdefault(name if equals else Path(file).stem, []).append(_read_predictions(file, kind))
    single = {name: each[0] if len(each) == 1 else each for name, each in methods.items()}
    scores = _judged(single, adata, split, settings, {})
    evaluation.write(scores, out)
    return evaluation.console_table(scores)


def read_judged(data_file: str, settings: ConfigDict, effects: bool = False) -> ad.AnnData:
    """A screen in log-expression, or a table of effects where the file or ``effects`` says so."""
    if effects or data.is_effects(data_file):
        return data.effects_table(data_file)
    try:
        adata = data.read_as_told(data_file, settings.data)
    except InputError as mistake:
        raise InputError(f"{mistake}; or, if it is a table of effects, say --effects") from None
    if "counts" in adata.layers and adata.uns["scbig"]["normalization"] == "counts":
        adata = data.normalize(adata, None, settings.data.target_sum)
    return adata


def _read_predictions(file: str, kind: str) -> ad.AnnData:
    try:
        predictions = ad.read_zarr(file) if Path(file).is_dir() else ad.read_h5ad(file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{file} cannot be read as an .h5ad or .zarr file ({error}): write the predictions again"
        ) from None
    told = dict(predictions.uns.get("scbig", {}))
    predictions.uns["scbig"] = {"kind": kind} | told if kind else told
    return predictions
