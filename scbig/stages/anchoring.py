"""The part of stage 2 that fits the anchor, before the flow, and decides what the flow may add to it, after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from ml_collections import ConfigDict

from scbig import anchor, baselines, priors, training
from scbig.anchor import Anchor, Gate
from scbig.console import say
from scbig.data.conditions import CONTROL, genes_of
from scbig.data.store import Store
from scbig.errors import InputError, some
from scbig.rng import generator
from scbig.stages.common import aliases, prior_file, targets
from scbig.training.starts import Starts
from scbig.training.vocabulary import IDENTITY, Group

__all__ = ["Anchored", "fit_anchor", "gated", "starts"]

_MOST_CONTROLS = 8192  # that are moved, of all


class Anchored(NamedTuple):
    """A fitted anchor and what it says of each group that is trained or watched.

    Attributes:
        anchor: fitted on all training conditions.
        effects: what each group's controls are moved by, ``[groups, genes]``: for trained groups what the anchor said
            without them.
        kinds: what was known of each group when that was said.
    """

    anchor: Anchor
    effects: Float[np.ndarray, "groups genes"]
    kinds: tuple[str, ...]


def _embeddings(settings: ConfigDict, perturbations: Sequence[str]) -> dict[str, baselines.Embedding]:
    """All that the anchor's sources know, and under the screen's own names where these are aliases."""
    found = {}
    for name in settings.anchor.sources or settings.priors.condition:
        if name == IDENTITY:
            continue
        each = priors.read_embedding(prior_file(settings, name))
        known = dict(zip(each.genes, range(len(each.genes)), strict=True))
        other = aliases(settings).mapping(each.genes)
        also = [p for p in perturbations if p not in known and other.get(p) in known]
        rows = [*range(len(each.genes)), *(known[other[p]] for p in also)]
        table = baselines.Embedding((*each.genes, *also), each.vectors[rows], np.ones(len(rows), bool))
        found[Path(name).name.split(".")[0]] = anchor.rounded(table)
    return found


def fit_anchor(
    settings: ConfigDict,
    screen: Store,
    part: np.ndarray,
    groups: Sequence[Group],
    trained: int,
    modules: Mapping[str, str],
    remarks: dict,
) -> Anchored | None:
    """Fits the anchor on the training conditions, and once more without each of them.

    Args:
        settings: the configuration.
        screen: the prepared screen.
        part: the part of every cell.
        groups: trained groups, then watched ones that are not trained.
        trained: how many are trained.
        modules: module by gene.
        remarks: for the run's record.

    Raises:
        InputError: an anchor that is not there, or a gate that is neither ``auto`` nor a number from 0 to 1.
    """
    a = settings.anchor
    if not a.method:
        return None
    anchor.check_method(a.method)
    _given_gate(settings)
    perturbations = targets(screen)
    embeddings = _embeddings(settings, perturbations)
    data = baselines.training_data_from_rows(
        screen.X, screen.obs, part, tuple(map(str, screen.var_names)), embeddings=embeddings
    )
    asked = screen.obs[["condition", "context"]][part != "train"].drop_duplicates().astype(str)
    measured = set(zip(data.conditions, data.contexts, strict=True))
    wanted = {anchor.kind_of(measured, c, k) for c, k in asked.itertuples(index=False) if c != CONTROL}
    fit = anchor.fitter(a.method, seed=settings.seed)
    few = replace(
        data, embeddings=anchor.restricted(embeddings, sorted({g for c in data.conditions for g in genes_of(c)}))
    )
    crossed = anchor.out_of_fold(fit, few, wanted, a.folds, settings.seed)
    skill = anchor.mean_skill(crossed.kind, crossed.skill)
    intervals = anchor.fit_intervals(few, crossed, modules, settings.seed)
    found = Anchor(a.method, data, skill=skill, move=a.move, seed=settings.seed, intervals=intervals)
    # Asked now, so that what they need is searched for once and kept with the run.
    asked = [(c, k) for c, k in asked.itertuples(index=False) if c != CONTROL]
    unanswered = [c for c, k in asked if "because" in found.account(c, k)]
    if unanswered:
        say(f"train: the anchor's first choice has no answer for {some(unanswered)}: see what its prediction rests on")
    row = {key: i for i, key in enumerate(zip(data.conditions, data.contexts, strict=True))}
    effects, kinds = [], []
    for place, group in enumerate(groups):
        if place < trained:
            at = row[(group.condition, group.context)]
            effects.append(crossed.effects[at])
            kinds.append(crossed.kind[at])
        else:
            effects.append(found.effect(group.condition, group.context))
            kinds.append(found.kind(group.condition, group.context))
    count = pd.Series(kinds[:trained]).value_counts()
    told = ", ".join(
        f"{n} {kind}" + (f" (skill {skill[kind]:.2f})" if kind in skill else "") for kind, n in count.items()
    )
    say(f"train: anchor {a.method}; training conditions as it saw them: {told}")
    remarks["anchor"] = {"method": a.method, "skill": skill, "kinds": count.to_dict()}
    if crossed.reasons:
        say(f"train: the anchor had no answer for {len(crossed.reasons)} left-out conditions; they start from the mean")
    return Anchored(found, np.stack(effects).astype(np.float32), tuple(kinds))


def starts(
    settings: ConfigDict, screen: Store, given: Anchored, auto: training.Autoencoder, space: Any, usable: np.ndarray
) -> Starts:
    """Moves the controls among the usable cells, a few thousand at the most of those that are trained on.

    Args:
        settings: the configuration.
        screen: the prepared screen.
        given: the anchor.
        auto: the trained autoencoder.
        space: the evaluation space.
        usable: cells that controls may be taken from.
    """
    controls = np.flatnonzero(usable & (screen.obs["condition"] == CONTROL).to_numpy())
    return Starts(screen.X, controls, given.effects, auto, space.project, settings.anchor.move)


def thinned(settings: ConfigDict, obs: pd.DataFrame, train: np.ndarray) -> np.ndarray:
    """The cells to train on with no more controls than can be moved."""
    controls = np.flatnonzero(train & (obs["condition"] == CONTROL).to_numpy())
    if len(controls) <= _MOST_CONTROLS:
        return train
    gone = generator(settings.seed, "controls to move").permutation(controls)[_MOST_CONTROLS:]
    out = train.copy()
    out[gone] = False
    return out


def _given_gate(settings: ConfigDict) -> float | None:
    text = str(settings.anchor.gate)
    if text == "auto":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InputError(f'--config.anchor.gate={text}: "auto" or a number from 0 to 1 is expected')
    return value


def gated(settings: ConfigDict, given: Anchored, evidence: Sequence[anchor.Evidence], remarks: dict) -> Anchor:
    """The anchor with the gates that the watched groups speak for, or with those given."""
    fixed = _given_gate(settings)
    if fixed is None:
        gates = anchor.fit_gates(evidence, anchor.KINDS)
    else:
        gates = {kind: Gate(fixed, fixed) for kind in anchor.KINDS}
    shown = {kind: gates[kind] for kind in anchor.KINDS if kind in given.kinds}
    say("train: kept of what the flow adds: " + "; ".join(
        f"{kind}: mean {g.mean:.2f}, shape {g.shape:.2f}" for kind, g in shown.items()
    ))  # fmt: skip
    remarks["anchor"]["gates"] = anchor.as_records(gates)
    return replace(given.anchor, gates=gates, settings=given.anchor.model.settings)
