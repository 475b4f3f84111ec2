"""Which perturbations to measure next: those likely to interact, to reach a target state, or to teach the most."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from scbig.analysis.interaction_model import CallModel
from scbig.analysis.interaction_predicted import FEWEST, LeftOut, expected, shifted
from scbig.anchor import Anchor
from scbig.data.conditions import CONTROL, genes_of, join
from scbig.errors import InputError, some

__all__ = ["by_interaction", "by_target", "by_uncertainty", "choose_apart", "known_genes", "pairs", "singles", "within"]

_BATCH = 512  # candidates predicted at once
_SHARED = 0.5  # likeness that a gene in common gives, beside that of the effects
_WEAK = 0.2  # skill below which a prediction is called weak


def known_genes(anchor: Anchor) -> set[str]:
    """Genes that a condition may be made of: measured, or in an embedding of the run."""
    found = {g for c in anchor.data.conditions for g in genes_of(c)}
    for each in anchor.data.embeddings.values():
        found |= {g for g, known in zip(each.genes, each.mask, strict=True) if known}
    return found


def pairs(anchor: Anchor, measured: Collection[str], context: str) -> list[str]:
    """All pairs of genes measured alone in training that were not measured together, sorted."""
    alone = sorted({g for c in anchor.data.table(context) if len(genes_of(c)) == 1 for g in genes_of(c)})
    return sorted({join(p) for p in combinations(alone, 2)} - set(measured))


def singles(anchor: Anchor, measured: Collection[str]) -> list[str]:
    """All genes that an embedding of the run knows and that were not perturbed alone, sorted."""
    found = {g for e in anchor.data.embeddings.values() for g, known in zip(e.genes, e.mask, strict=True) if known}
    return sorted({join([g]) for g in found} - set(measured))


def within(candidates: Sequence[str], genes: Sequence[str]) -> list[str]:
    """Candidates made of these genes only; where one gene is named, all that contain it.

    Raises:
        InputError: a gene that no candidate has.
    """
    if not genes:
        return list(candidates)
    wanted = set(genes)
    missing = sorted(wanted - {g for c in candidates for g in genes_of(c)})
    if missing:
        raise InputError(
            f"--genes {some(missing)}: in no candidate; genes must be known to the run and not yet measured"
        )
    if len(wanted) == 1:
        return [c for c in candidates if wanted & set(genes_of(c))]
    found = [c for c in candidates if set(genes_of(c)) <= wanted]
    if not found:
        raise InputError(f"--genes {some(sorted(wanted))}: no candidate is made of these genes alone")
    return found


def effects_of(anchor: Anchor, names: Sequence[str], context: str) -> Float[np.ndarray, "n genes"]:
    """Predicted effects, float32."""
    out = np.empty((len(names), len(anchor.data.genes)), np.float32)
    for row, name in enumerate(names):
        out[row] = anchor.effect(name, context)
    return out


def _own(anchor: Anchor, names: Sequence[str]) -> list[list[int]]:
    at = {g: i for i, g in enumerate(anchor.data.genes)}
    return [[at[g] for g in genes_of(name) if g in at] for name in names]


def _nearest(anchor: Anchor, effects: np.ndarray, context: str) -> tuple[list[str], np.ndarray]:
    """The measured condition whose effect is most alike, and the cosine."""
    table = {c: e for c, e in anchor.data.table(context).items() if c != CONTROL}
    names = sorted(table)
    measured = np.stack([table[c] for c in names])
    measured = measured / np.maximum(np.linalg.norm(measured, axis=1, keepdims=True), 1e-12)
    cosine = effects @ measured.T / np.maximum(np.linalg.norm(effects, axis=1, keepdims=True), 1e-12)
    best = cosine.argmax(axis=1)
    return [names[i] for i in best], cosine[np.arange(len(best)), best]


def choose_apart(
    worth: Float[np.ndarray, " n"], effects: Float[np.ndarray, "n genes"], genes: Sequence[Collection[str]], n: int
) -> Int[np.ndarray, " chosen"]:
    """A batch in which each choice is worth much and tells what the others do not.

    Greedy choice of what is least known given those chosen before: the variance of a Gaussian process whose kernel is the
    cosine of the predicted effects, half of it given to a shared gene, times the squared worth (a pivoted Cholesky
    decomposition; Krause, Singh and Guestrin 2008, JMLR 9:235). Time grows with candidates times n squared.

    Args:
        worth: of each candidate alone, not negative.
        effects: predicted effects.
        genes: genes of each candidate.
        n: how many to choose.

    Returns:
        Places of the chosen, in the order chosen.
    """
    unit = effects / np.maximum(np.linalg.norm(effects, axis=1, keepdims=True), 1e-12)
    names = sorted({g for each in genes for g in each})
    at = {g: i for i, g in enumerate(names)}
    member = np.zeros((len(genes), len(names)), np.float32)
    for row, each in enumerate(genes):
        member[row, [at[g] for g in each]] = 1.0 / np.sqrt(max(len(each), 1))
    left = np.ones(len(worth))
    columns = np.zeros((len(worth), min(n, len(worth))))
    chosen: list[int] = []
    for step in range(columns.shape[1]):
        value = np.square(worth) * np.maximum(left, 0.0)
        value[chosen] = -1.0
        best = int(value.argmax())
        alike = (1 - _SHARED) * (unit @ unit[best]) + _SHARED * (member @ member[best])
        columns[:, step] = (alike - columns[:, :step] @ columns[best, :step]) / np.sqrt(max(left[best], 1e-9))
        left = left - np.square(columns[:, step])
        chosen.append(best)
    return np.array(chosen)


def _account(anchor: Anchor, name: str, context: str) -> tuple[str, float]:
    told = anchor.account(name, context)
    return str(told["kind"]), float(told.get("skill", np.nan))


def _rows(anchor: Anchor, names: Sequence[str], context: str, table: pd.DataFrame, effects: np.ndarray) -> pd.DataFrame:
    """Adds what every list has: rank, what it rests on, the nearest measured condition, and the cost so far."""
    known, cosine = _nearest(anchor, effects, context)
    kinds, skill = zip(*(_account(anchor, name, context) for name in names), strict=True)
    cells = int(np.median(anchor.data.n_cells)) if np.any(anchor.data.n_cells > 0) else 0
    rank = np.arange(1, len(names) + 1)
    first = pd.DataFrame({"rank": rank, "condition": list(names), "context": context})
    last = pd.DataFrame(
        {"rests on": kinds, "skill": skill, "nearest measured": known, "cosine to it": cosine,
         "conditions so far": rank, "cells": cells, "cells so far": rank * cells}
    )  # fmt: skip
    return pd.concat([first, table.reset_index(drop=True), last], axis=1)


def by_interaction(
    anchor: Anchor, names: Sequence[str], context: str, n: int, crossed: LeftOut, model: CallModel | None = None
) -> pd.DataFrame:
    """Pairs by how likely they are to depart from the sum of their singles.

    Args:
        anchor: of the run.
        names: candidate pairs of genes measured alone.
        context: where.
        n: how many to list.
        crossed: the anchor's errors on left-out pairs.
        model: learned from the measured pairs; without it pairs are ranked by the predicted departure.

    Returns:
        ``score`` is the probability of a departure above the median of the measured pairs, with a 90% interval over draws
        of these pairs; without a model it is ``departure``. ``departure``, with ``departure low`` and ``departure
        high``, is the predicted relative departure as it would be measured, the noise of such a measurement in it.
    """
    parts = [expected(anchor, names[i : i + _BATCH], context, crossed) for i in range(0, len(names), _BATCH)]
    names_of = ("relative", "middle", "low", "high")
    relative, middle, low, high = (np.concatenate([getattr(p, each) for p in parts]) for each in names_of)
    middle = np.where(np.isnan(middle), relative, middle)
    table = pd.DataFrame({"departure": middle, "departure low": low, "departure high": high})
    if model is None:
        table = pd.concat([pd.DataFrame({"score": middle, "low": low, "high": high}), table], axis=1)
    else:
        told = model.probability(names)
        table = pd.concat([told.rename(columns={"probability": "score"})[["score", "low", "high"]], table], axis=1)
    order = np.lexsort((np.arange(len(names)), -table["score"].to_numpy()))[:n]
    chosen, table = [names[i] for i in order], table.iloc[order].reset_index(drop=True)
    if model is None:
        table["reason"] = [f"predicted to depart from the sum by {d:.2f} of its size" for d in table["departure"]]
    else:
        why = _why(model, chosen)
        table["reason"] = [
            f"departs by more than {model.threshold:.2f} of the sum with probability {s:.2f}: {w}"
            for s, w in zip(table["score"], why, strict=True)
        ]
    effects = np.concatenate([p.effects for p in parts])[order]
    return _rows(anchor, chosen, context, table, effects)


def _why(model: CallModel, names: Sequence[str]) -> list[str]:
    """What of the features stands out most among the candidates, in words."""
    words = {
        "likeness": "the singles have like effects", "same module": "both genes are of one module",
        "action": "one gene's module acts on the other's", "link": "one gene's module acts on the other's",
        "common action": "both act on a common module", "common link": "both act on a common module",
        "size": "both singles are strong", "effect on module": "one gene moves the other's module",
    }  # fmt: skip
    pipeline = model.fits[0]
    pull = pipeline[0].transform(model.features(names).to_numpy()) * pipeline[1].coef_[0]
    found = list(words.values())
    return [found[i] if top > 0 else "nothing stands out" for i, top in zip(pull.argmax(1), pull.max(1), strict=True)]


def by_target(
    anchor: Anchor,
    names: Sequence[str],
    context: str,
    n: int,
    target: Float[np.ndarray, " genes"],
    crossed: LeftOut,
) -> pd.DataFrame:
    """Conditions by how near to a target state they are predicted to come.

    Args:
        anchor: of the run.
        names: candidates.
        context: where.
        n: how many to list.
        target: mean of the target cells minus mean of the run's controls; NaN for genes that are not known.
        crossed: the anchor's errors on left-out conditions.

    Returns:
        ``score`` is the share of the way from control to the target that is covered, 1 − distance over control's
        distance, negative where it leads away. It is stated as it would be measured, noise and all, so that it compares
        with measured conditions: shifted by the median of what conditions left out did beyond their prediction, ``low``
        and ``high`` by the 5th and 95th percentile (NaN, and no shift, with fewer than nine). ``distance``, ``control
        distance``; and of the measured conditions the one that comes nearest, ``best measured``, with ``best measured
        score``. A candidate's own genes are left out.
    """
    use = np.isfinite(target)
    goal, known = np.where(use, target, 0.0), {c: e for c, e in anchor.data.table(context).items() if c != CONTROL}

    def share(effects: np.ndarray, own: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        away, full = np.where(use, effects - goal, 0.0), np.tile(goal, (len(effects), 1))
        for row, places in enumerate(own):
            away[row, places] = full[row, places] = 0.0
        whole = np.maximum(np.linalg.norm(full, axis=1), 1e-12)
        return np.linalg.norm(away, axis=1), whole

    tried = _own(anchor, crossed.conditions)
    near, whole = share(crossed.effects.astype(np.float64), tried)
    told = 1 - near / whole
    near, whole = share(crossed.effects.astype(np.float64) + crossed.errors, tried)
    seen, kind_of_tried = 1 - near / whole, np.array(crossed.kinds)

    def bounds(score: np.ndarray, kinds: np.ndarray) -> np.ndarray:
        out = np.full((3, len(score)), np.nan)
        for kind in set(kinds) - {"measured"}:
            alike = kind_of_tried == kind
            alike = alike if alike.sum() >= FEWEST else np.ones(len(told), bool)
            out[:, kinds == kind] = shifted(score[kinds == kind], told[alike], seen[alike])
        return out

    measured = sorted(known)
    near, whole = share(np.stack([known[c] for c in measured]), _own(anchor, measured))
    reached = 1 - near / whole
    best = int(reached.argmax())
    records, kept = [], []
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        effects, own = effects_of(anchor, batch, context), _own(anchor, batch)
        distance, whole = share(effects.astype(np.float64), own)
        score = 1 - distance / whole
        low, middle, high = bounds(score, np.array([anchor.kind(name, context) for name in batch]))
        score = np.where(np.isnan(middle), score, middle)
        records.append(
            pd.DataFrame({"score": score, "low": low, "high": high, "distance": distance, "control distance": whole})
        )
        kept.append(effects)
    table = pd.concat(records, ignore_index=True)
    order = np.lexsort((np.arange(len(names)), -table["score"].to_numpy()))[:n]
    chosen, table = [names[i] for i in order], table.iloc[order].reset_index(drop=True)
    table["best measured"], table["best measured score"] = measured[best], float(reached[best])
    table["reason"] = [
        f"covers {s:.0%} of the way to the target"
        + (f"; {measured[best]}, already measured, covers {reached[best]:.0%}" if reached[best] >= s else "")
        for s in table["score"]
    ]
    return _rows(anchor, chosen, context, table, np.concatenate(kept)[order])


def by_uncertainty(anchor: Anchor, names: Sequence[str], context: str, n: int) -> pd.DataFrame:
    """A batch of conditions whose outcome is least certain, none like another.

    Args:
        anchor: of the run.
        names: candidates.
        context: where.
        n: how many to choose.

    Returns:
        ``score`` is the root mean squared half width of the 90% intervals of the effect over genes; ``low`` and ``high``
        the 5th and 95th percentile of the half widths over genes. Where the run has no intervals, or they are
        infinite, 1 − skill, without bounds.

    Raises:
        InputError: neither intervals nor a skill to go by.
    """
    effects, score, ends = [], [], []
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        low, high = anchor.interval(batch, [context] * len(batch))
        half = ((high - low) / 2).astype(np.float64)
        effects.append(effects_of(anchor, batch, context))
        score.append(np.sqrt(np.square(half).mean(axis=1)))
        known = np.isfinite(half).all()
        ends.append(np.quantile(half, [0.05, 0.95], axis=1).T if known else np.full((len(batch), 2), np.nan))
    worth, bounds, predicted = np.concatenate(score), np.concatenate(ends), np.concatenate(effects)
    basis = "intervals"
    if not np.isfinite(worth).all():
        worth, basis = 1 - np.array([_account(anchor, name, context)[1] for name in names]), "skill"
        bounds = np.full((len(names), 2), np.nan)
        if np.isnan(worth).any():
            raise InputError("this run has neither intervals nor a skill for these candidates: nothing to rank by")
    order = choose_apart(np.maximum(worth, 0.0), predicted, [genes_of(name) for name in names], n)
    chosen = [names[i] for i in order]
    told = "its effect is known to about ±{:.2f} per gene" if basis == "intervals" else "1 − skill is {:.2f}"
    table = pd.DataFrame(
        {"score": worth[order], "low": bounds[order, 0], "high": bounds[order, 1],
         "reason": [f"{told.format(worth[i])}, and little is told by those above" for i in order]}
    )  # fmt: skip
    return _rows(anchor, chosen, context, table, predicted[order])


def weakness(table: pd.DataFrame, model: CallModel | None, by: str) -> str:
    """What makes a list weak evidence, in a sentence; nothing where nothing does."""
    found = []
    for kind, rows in table.groupby("rests on", sort=True):
        skill = float(rows["skill"].iloc[0])
        if not skill >= _WEAK:
            told = "was never measured" if np.isnan(skill) else f"is only {skill:.2f}"
            found.append(f"the out-of-fold skill for conditions of the kind '{kind}' {told}")
    if by == "interaction" and model is None:
        found.append("too few measured pairs to learn which interact, and a predicted departure alone hardly tells")
    if by == "interaction" and model is not None and model.auroc_low <= 0.5:
        found.append(
            f"on left-out pairs the ranking was no better than chance (AUROC {model.auroc:.2f}, "
            f"{model.auroc_low:.2f} … {model.auroc_high:.2f})"
        )
    return "; ".join(found)
