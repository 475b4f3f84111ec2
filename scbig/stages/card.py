"""The card of a trained model: what it is, what it was shown, how well it does, and what it cannot do.

Everything is read from the run's own records, in the order of Mitchell et al., "Model Cards for Model Reporting" (2019).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
from ml_collections import ConfigDict

from scbig import config as configuration
from scbig import evaluation, predict, training
from scbig.anchor import KINDS, Anchor
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.source import told_damage
from scbig.data.splits import Split
from scbig.errors import some
from scbig.evaluation.page import number
from scbig.files import atomic
from scbig.run import Run
from scbig.stages.card_scores import pairs, results, sentences, table
from scbig.training.checkpoint import count_params
from scbig.training.vocabulary import IDENTITY, Vocabulary

__all__ = ["render", "rests_on", "write"]

_WEAK = 0.2  # skill below which an anchor is hardly better than its simpler answer
_MOST = 12  # names listed
_MEANING = {
    "measured": "measured in training, in this context",
    "combination": "not measured, but each of its perturbations was, alone",
    "partly": "a combination of which some perturbations were measured alone",
    "unseen": "no perturbation of it was measured; known by its embeddings only",
    "context": "measured in other contexts only",
}


def write(run: Run) -> None:
    """Writes ``model_card.md``."""
    text = render(run)
    with atomic(run.path("model_card.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")


def render(run: Run, controls: Mapping[str, Any] | None = None) -> str:
    """The card as Markdown.

    Args:
        run: a trained run, evaluated or not.
        controls: of a bundle, what it holds of control cells: ``cells``, ``of``, ``per_context``.
    """
    settings = configuration.read_json(run.path("config.json"))
    stages = run.provenance["stages"]
    scores = evaluation.load(run.path("evaluation")) if "evaluate" in stages else None
    rests = None if scores is None else rests_on(run, scores)
    vocabulary = Vocabulary.load(run.path("flow/conditions.npz"))
    # Runs of earlier versions had no anchor, and no file that says so.
    anchor = Anchor.load(run.path("flow/anchor.npz")) if run.path("flow/anchor.npz").exists() else None
    cells = predict.cell_table(run)
    parts = [
        f"# Model card: {settings.name}",
        _summary(vocabulary, scores),
        _details(settings, stages, vocabulary, anchor),
        _use(vocabulary, anchor, settings),
        _data(run, settings, stages, cells),
        _priors(stages, vocabulary),
        _training(run, stages),
        results(scores),
        _mean(anchor, rests),
        _limits(anchor, vocabulary, scores, rests, settings),
        _shared(controls, anchor),
        _cite(stages),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def rests_on(run: Run, scores: evaluation.Scores) -> pd.DataFrame | None:
    """What the anchor said of each test condition beside what was reached; None where the run has no anchor."""
    with h5py.File(run.path("predictions/test.h5ad"), "r") as file:
        about = ad.io.read_elem(file["uns/scbig"])
        if "anchor" not in about:
            return None
        low, high = (ad.io.read_elem(file[f"varm/effect_{end}"]).loc[list(scores.genes)] for end in ("low", "high"))
    reached = scores.per_condition
    reached = reached[(reached["method"] == "scBIG") & (reached["metric"] == "pearson_delta")]
    found = about["anchor"].astype({"condition": str, "context": str})
    place = {
        key: i for i, key in enumerate(zip(scores.conditions["condition"], scores.conditions["context"], strict=True))
    }
    inside = []
    for column, key in enumerate(zip(found["condition"], found["context"], strict=True)):
        bounds = low.iloc[:, column].to_numpy(), high.iloc[:, column].to_numpy()
        observed = scores.observed[place[key]] if key in place else np.full(len(low), np.nan)
        known = np.isfinite(observed) & np.isfinite(bounds[0])
        inside.append(
            np.mean((observed >= bounds[0])[known] & (observed <= bounds[1])[known]) if known.any() else np.nan
        )
    found["inside"] = inside
    return found.merge(
        reached[["condition", "context", "value"]].astype({"condition": str, "context": str}), how="left"
    )


def _summary(vocabulary: Vocabulary, scores: evaluation.Scores | None) -> str:
    several = "s" if len(vocabulary.contexts) > 1 else ""
    text = (
        f"Predicts the population of single cells after perturbations, in context{several} {_named(vocabulary.contexts)}: "
        "log-expression of each cell, and the mean effect with an interval where one can be stated."
    )
    if scores is None:
        return f"{text} **It was not evaluated**: no score is known for it."
    return f"{text} {sentences(scores)[0]}"


def _details(settings: ConfigDict, stages: Mapping[str, Any], vocabulary: Vocabulary, anchor: Anchor | None) -> str:
    made = stages["train"]
    software = dict(made["software"])
    commit = software.pop("commit", "")
    version = f"scBIG {software.pop('scbig')}" + (f", checkout {commit}" if commit else "")
    mean = f"the anchor `{anchor.method}`" if anchor else "none: the flow starts from control cells"
    rows = {
        "name": settings.name,
        "trained": made["finished"],
        "made with": version,
        "libraries": ", ".join(f"{name} {each}" for name, each in software.items()),
        "autoencoder": f"gene-cluster-aware, {settings.modules.n_modules} modules ({settings.modules.method}), latent of "
        f"{settings.gcae.latent} numbers, {settings.gcae.likelihood} likelihood",
        "predictor of the mean": mean,
        "flow": f"conditional flow matching, {settings.flow.coupling} coupling; sources of conditions: "
        f"{_named(sorted(vocabulary.genes))}",
        "seed": settings.seed,
        "licence of the weights": "not stated by the run; whoever shares them must say it",
    }
    return f"## Model details\n\n{pairs(rows)}"


def _use(vocabulary: Vocabulary, anchor: Anchor | None, settings: ConfigDict) -> str:
    embedded = {name: len(each) for name, each in vocabulary.genes.items() if name != IDENTITY}
    known = ", ".join(f"{name} ({n:,})" for name, n in embedded.items()) or "none; only trained perturbations"
    doses = "" if "dose" not in settings.data or not settings.data.dose else " Doses were given as numbers."
    return "\n".join(
        [
            "## Intended use",
            "",
            "For choosing and designing experiments: which perturbations, alone or combined, are worth a screen, and what "
            "they may do. A prediction is a hypothesis; the experiment decides.",
            "",
            f"- Can be asked for: `control`, the {len(vocabulary.trained):,} perturbations of the training conditions, and "
            f"what the embeddings know (names by source: {known}), alone or joined by `+`.{doses}",
            f"- Contexts: {_named(vocabulary.contexts)}. Others are refused.",
            "- Not for: decisions on patients; p-values from sampled cells (their noise is borrowed from control cells); "
            "contexts, doses or kinds of perturbation outside the training data.",
        ]
    )


def _data(run: Run, settings: ConfigDict, stages: Mapping[str, Any], obs: pd.DataFrame) -> str:
    path = run.path("prepared.h5ad")
    with told_damage(str(path)), h5py.File(path, "r") as file:
        about = ad.io.read_elem(file["uns/scbig"])
    split, remarks = Split.load(run.path("split.csv")), stages["prepare"]["remarks"]
    control = np.asarray(obs["condition"].astype(str) == CONTROL)
    context = obs["context"].astype(str)
    per_context = {
        name: (int((context == name).sum()), int(control[context == name].sum())) for name in sorted(set(context))
    }
    told = "log-expression as it was given"
    if str(about["normalization"]) != "given":
        what = " (the median)" if str(about["normalization"]) == "median" else ""
        told = f"log(1 + count / depth × {float(about['target_sum']):g}{what}), natural logarithm"
    tested = split.table[split.table["part"] == "test"]
    strata = tested.loc[tested["condition"] != CONTROL].groupby("stratum", sort=True)["condition"].nunique()
    rows = {
        "screen": f"{PurePath(settings.data.path).name} (sha256 {stages['prepare']['inputs'].get('data', 'not recorded')})",
        "cells": f"{len(obs):,}, of them {int(control.sum()):,} control",
        "genes": f"{remarks['genes']:,}",
        "contexts": "; ".join(f"{name}: {n:,} cells, {c:,} control" for name, (n, c) in per_context.items()),
        "batches": f"{obs['batch'].nunique():,}",
        "expression": told,
        "split": f"{split.name}, rule `{split.rule}`, seed {split.seed}, sha256 {split.sha256}",
        "conditions": ", ".join(f"{n:,} {part}" for part, n in remarks["conditions"].items()),
        "kinds held out for the test": ", ".join(f"{name or '(none)'} {n}" for name, n in strata.items()),
    }
    text = f"## Data\n\n{pairs(rows)}"
    if about.get("simulated"):
        text += "\n\n**The screen is simulated**: nothing here says how well biology is predicted."
    return text


def _priors(stages: Mapping[str, Any], vocabulary: Vocabulary) -> str:
    rows = [
        [
            "genes",
            c["source"],
            f"{c['n_found']:,} of {c['n_genes']:,}",
            f"{c['n_targets_found']:,} of {c['n_targets']:,}",
        ]
        for c in stages["cluster"]["remarks"].get("coverage", [])
    ]
    lacking = stages["train"]["remarks"].get("without_embedding", {})
    trained = len(vocabulary.trained)
    for name, missing in lacking.items():
        told = f"{trained - len(missing):,} of {trained:,}" if trained else f"all but {len(missing):,}"
        rows.append(["conditions", name, "–", told])
    text = table(["used for", "source", "genes found", "perturbations found"], rows)
    gone = sorted({p for name, each in lacking.items() if name != IDENTITY for p in each})
    more = f"\n\nTrained perturbations that some source lacks: {some(gone, _MOST)}." if gone else ""
    return f"## Prior knowledge\n\n{text}{more}"


def _training(run: Run, stages: Mapping[str, Any]) -> str:
    rows = []
    for stage, title, folder in (("pretrain", "autoencoder", "gcae/params"), ("train", "flow", "flow/params")):
        record = stages[stage]
        lines, remarks = training.read_metrics(run.folder, stage), record["remarks"]
        rows.append(
            [
                title,
                f"{count_params(run.path(folder)):,}",
                f"{lines[-1]['step']:,}" if lines else "not recorded",
                f"{remarks['best_step']:,}",
                f"{record['seconds']:,.0f}",
                str(remarks.get("devices", "not recorded")),
                str(remarks.get("precision") or "not recorded"),
            ]
        )
    header = ["part", "parameters", "steps", "kept step", "seconds", "devices", "precision"]
    return f"## Training\n\n{table(header, rows)}"


def _mean(anchor: Anchor | None, rests: pd.DataFrame | None) -> str:
    title = "## Where the mean of a prediction comes from"
    if anchor is None:
        return f"{title}\n\nFrom the flow alone: there is no anchor, and so no interval and no skill to expect."
    rows = []
    for kind in KINDS:
        gate = anchor.gates.get(kind)
        asked = pd.DataFrame() if rests is None else rests[rests["kind"] == kind]
        tested = len(asked) > 0
        if not tested and kind not in anchor.skill:
            continue
        rows.append(
            [
                f"{kind}: {_MEANING[kind]}",
                _named(sorted(set(asked["basis"]))) if tested else "–",
                number(anchor.skill[kind]) if kind in anchor.skill else "unknown",
                "–" if gate is None else f"{gate.mean:.2f}, {gate.shape:.2f} ({gate.n})",
                str(len(asked)) if tested else "0",
                number(_average(asked["value"])) if tested else "–",
                f"{_average(asked['inside']):.0%}" if tested and np.isfinite(_average(asked["inside"])) else "–",
            ]
        )
    header = (
        "kind of condition", "answered by", "skill", "gates: mean, shape (conditions)", "tested", "pearson_delta",
        "in the 90% interval",
    )  # fmt: skip
    interval = "No intervals can be stated: too few conditions could be left out."
    if anchor.intervals is not None:
        n = len(set(anchor.intervals.conditions))
        interval = (
            f"90% intervals are conformal, calibrated on {n:,} training conditions that the anchor was fitted without; the "
            "last column is the share of the genes of the test conditions that they covered."
        )
    return (
        f"{title}\n\nFrom the anchor, `{anchor.method}`: a predictor of mean effects, by which control cells are moved "
        f"(`{anchor.move}`). *Skill* is the correlation of what it says beyond the simpler answer with what was measured, "
        "for conditions it was fitted without. *Gates* are the shares of what the flow adds that are kept, of its mean and "
        f"of its shape, and the number of conditions that decided.\n\n{table(header, rows)}\n\n{interval}"
    )


def _average(values: pd.Series) -> float:
    known = values.to_numpy(np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def _limits(
    anchor: Anchor | None,
    vocabulary: Vocabulary,
    scores: evaluation.Scores | None,
    rests: pd.DataFrame | None,
    settings: ConfigDict,
) -> str:
    out = [] if anchor is None else _limits_of(anchor, rests)
    if settings.data.dose and anchor is not None:
        out.append("Mean effects are averaged over doses.")
    if list(vocabulary.genes) == [IDENTITY]:
        out.append("Perturbations are known by name only: none that was not trained on can be predicted.")
    if scores is not None:
        gone = scores.excluded[(scores.excluded["method"] == "scBIG") & (scores.excluded["metric"] == "")]
        if len(gone):
            out.append(f"Test conditions without a prediction: {some(sorted(set(gone['condition'])), _MOST)}.")
    out += [
        f"Trained in {_named(vocabulary.contexts)} only. No score above covers a cell line, donor or protocol beyond that.",
        "Scores are averages over conditions; single conditions are predicted much better or worse.",
        "The spread of sampled cells is not the uncertainty of a prediction; the interval of the effect is.",
        "Cells that escaped the perturbation are part of the populations learned from.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in out)


def _limits_of(anchor: Anchor, rests: pd.DataFrame | None) -> list[str]:
    """What follows from what the anchor was tested on, and from what it proved."""
    out, tested = [], set() if rests is None else set(rests["kind"])
    untested = [kind for kind in KINDS if kind not in tested and kind != "measured"]
    if untested:
        out.append(f"Not evaluated, so that nothing is known of how well they are predicted: kinds {_named(untested)}.")
    weak = [f"{kind} ({number(value)})" for kind, value in anchor.skill.items() if value < _WEAK]
    if weak:
        out.append(f"Weak skill: {', '.join(weak)}. There the anchor says little more than the simpler answer.")
    shut = [kind for kind, gate in anchor.gates.items() if gate.mean == 0 and kind in tested]
    if shut:
        out.append(
            f"Mean effects are the anchor's alone for {_named(shut)}: the flow did not prove that it improves them."
        )
    longest = max((len(genes_of(c)) for c in anchor.data.conditions), default=1)
    out.append(f"No more than {longest} perturbation{'s' * (longest > 1)} at once in training; more are untested.")
    return out


def _shared(controls: Mapping[str, Any] | None, anchor: Anchor | None) -> str:
    if controls is None:
        return ""
    cells = "No cells. Whoever samples gives control cells of their own."
    if controls["cells"]:
        each = ", ".join(f"{name} {n:,}" for name, n in controls["per_context"].items())
        cells = (
            f"{controls['cells']:,} **control cells of the screen** ({each}; of {controls['of']:,}), with expression, batch "
            "and name. Predictions start from them."
        )
    lines = [cells, "Embeddings of perturbations, names of genes, modules, settings and weights."]
    if anchor is not None:
        lines.insert(1, "Mean effects of the training conditions, and mean expression of their controls.")
    lines.append("No perturbed cells, and no path of the machine that it was trained on.")
    return (
        "## What this file holds of the data\n\n"
        + "\n".join(f"- {line}" for line in lines)
        + "\n\nCells of donors and unpublished effects may not be yours to give away: check consent and licence of the "
        "screen and of the embeddings."
    )


def _cite(stages: Mapping[str, Any]) -> str:
    version = stages["train"]["software"]["scbig"]
    return (
        "## How to cite\n\n"
        f"The screen and its authors; the sources of the embeddings, networks and pathways; the software, scBIG {version} "
        "(`CITATION.cff` in its source); and this model by its name and the sha256 of the file."
    )


def _named(names: Iterable[str]) -> str:
    return some(names, _MOST) or "none"
