"""Baselines whose prediction for an unseen gene is a weighted sum of training effects.

Nearest neighbours, kernel ridge and regression on features all are: they differ in the weights, which hang on
the embeddings. So their settings can be compared by inner products of training effects alone, without
forming a prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from scbig.baselines.base import Model, TrainingData, fitted_contexts, one_context
from scbig.baselines.validation import folds
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import some

__all__ = ["FEWEST", "Judge", "Weigher", "choose_from", "fit_smoother", "left_out"]

FEWEST = 5
"""Training singles with a vector below which nothing can be chosen."""

Weigher = Callable[[Sequence[str], Any], np.ndarray]
"""From genes and a setting to weights ``[genes, training genes]`` of deviations from the mean training effect.

A row of NaN says that nothing is known of the gene.
"""
Prepare = Callable[[Sequence[str], np.ndarray], Weigher]
"""From training genes and the inner products of their effects (taken to their mean) to a ``Weigher``."""
Judge = Callable[[Any], tuple[float, float]]
"""From a setting to the score on left-out conditions and the slope of observed on predicted deviations."""
Choose = Callable[[Judge], tuple[Any, tuple[dict, ...]]]
"""From a judge to the best setting and the record of what was tried."""


@dataclass(frozen=True)
class _Part:
    """What one context learned; ``reason`` instead where it could not."""

    singles: Mapping[str, np.ndarray]
    reason: str = ""
    weigh: Weigher | None = None
    setting: Any = None
    slope: float = 0.0
    mean: np.ndarray | None = None
    deviations: np.ndarray | None = None


def choose_from(grid: Sequence[Any], describe: Callable[[Any], dict]) -> Choose:
    """Takes the setting of the best score, the first of equals."""

    def choose(judge: Judge) -> tuple[Any, tuple[dict, ...]]:
        values = [judge(setting)[0] for setting in grid] if len(grid) > 1 else [float("nan")]
        best = int(np.argmax(values)) if len(grid) > 1 else 0
        return grid[best], tuple(describe(s) | {"value": v} for s, v in zip(grid, values, strict=True))

    return choose


def left_out(
    names: Sequence[str], gram: Float[np.ndarray, "n n"], prepare: Prepare, n_folds: int = 5, seed: int = 0
) -> Judge:
    """Cross-validation of weighted sums inside the training conditions.

    Equals ``validation.score`` of the predictions, fold by fold, without forming them.

    Args:
        names: training genes.
        gram: inner products of their effects, each effect centred over genes.
        prepare: fits on the training genes of a fold.
        n_folds: how many folds.
        seed: of the folds.

    Returns:
        From a setting to the mean over left-out conditions of the Pearson correlation, both sides taken to the
        mean of the fold's training effects, and the least-squares slope, never negative, by which predicted
        deviations from that mean are to be scaled.
    """
    at = {name: i for i, name in enumerate(names)}
    parts = []
    for held in folds(names, n_folds, seed):
        out = np.array([at[name] for name in held])
        rest = np.setdiff1d(np.arange(len(names)), out)
        inner, cross = gram[np.ix_(rest, rest)], gram[np.ix_(rest, out)]
        centre = inner.mean(axis=1, keepdims=True)
        inside = inner - centre - centre.T + inner.mean()
        across = cross - centre - cross.mean(axis=0) + inner.mean()
        own = np.diag(gram)[out] - 2 * cross.mean(axis=0) + inner.mean()
        parts.append((held, prepare([names[i] for i in rest], inside), inside, across, own))

    def judge(setting: Any) -> tuple[float, float]:
        r, product, square = [], 0.0, 0.0
        for held, weigh, inside, across, own in parts:
            w = np.nan_to_num(weigh(held, setting))
            xy, xx = (w * across.T).sum(axis=1), ((w @ inside) * w).sum(axis=1)
            size = np.sqrt(np.maximum(xx, 0) * np.maximum(own, 0))
            # Below single precision of the observed deviation a predicted one is rounding.
            said = xx > 1e-12 * own
            r.append(np.divide(xy, size, out=np.zeros(len(w)), where=said & (size > 0)))
            product, square = product + xy.sum(), square + xx.sum()
        slope = product / square if square > 0 else 0.0
        return float(np.concatenate(r).mean()), max(0.0, float(slope))

    return judge


def fit_smoother(
    name: str,
    data: TrainingData,
    known: Collection[str],
    lacking: str,
    prepare: Prepare,
    choose: Choose,
    describe: Callable[[Any], dict],
    n_folds: int = 5,
    seed: int = 0,
    shrink: bool = True,
) -> Model:
    """Fits a weighted sum of training effects in every context.

    What a training condition does to its own gene is not lent to others: there its effect is replaced by the
    mean of the other conditions.

    Args:
        name: which baseline.
        data: training effects.
        known: genes with a vector.
        lacking: the reason for genes without one, such as ``no vector in string``.
        prepare: see ``Prepare``.
        choose: picks the setting.
        describe: a setting as a record.
        n_folds: folds of the cross-validation.
        seed: of the folds.
        shrink: scale deviations from the mean by the slope found in the cross-validation.

    Returns:
        The model. Singles are predicted from their embedding. A combination is the sum over its genes, of the
        training effect of the single where there is one, else of the predicted single.
    """
    parts, notes, study = {}, [], []
    several = len(set(data.contexts)) > 1
    for context in fitted_contexts(data):
        own = data.own(context)
        table = own if len(own) > 1 else data.table(context)
        parts[context], tried = _fit(table, data, context, known, lacking, prepare, choose, n_folds, seed, shrink)
        if not parts[context].reason:
            told = ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in describe(parts[context].setting).items()
            )
            where = f" in context {context}" if context else " over all contexts"
            used = f"{len(parts[context].deviations)} training singles"
            notes.append(f"{told}, slope {parts[context].slope:.2f}, {used}{where if several else ''}")
        study += [({"context": context} if several else {}) | record for record in tried]
    last = list(parts)[-1]
    zero = np.zeros(len(data.genes))

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        part = parts.get(context, parts[last])
        genes = genes_of(condition)
        asked = [g for g in genes if len(genes) == 1 or g not in part.singles]
        if part.reason and asked:
            return part.reason
        absent = [g for g in asked if g not in known]
        if absent:
            return f"{lacking}: {some(absent)}"
        total = sum((part.singles[g] for g in genes if g not in asked), zero)
        if not asked:
            return total
        w = part.weigh(asked, part.setting)
        alone = [g for g, row in zip(asked, w, strict=True) if np.isnan(row).any()]
        if alone:
            return f"no training gene shares a source with {some(alone)}"
        return total + len(asked) * part.mean + part.slope * (w.sum(axis=0) @ part.deviations)

    return Model(name, data.genes, one_context(data), rule, tuple(notes), tuple(study))


def _fit(
    table: Mapping[str, np.ndarray],
    data: TrainingData,
    context: str,
    known: Collection[str],
    lacking: str,
    prepare: Prepare,
    choose: Choose,
    n_folds: int,
    seed: int,
    shrink: bool,
) -> tuple[_Part, tuple[dict, ...]]:
    singles = {c: e for c, e in data.table(context).items() if len(genes_of(c)) == 1}
    # In order of name, so that the rows' order cannot matter.
    names = sorted(c for c in table if len(genes_of(c)) == 1 and c in known)
    if len(names) < FEWEST:
        return _Part(singles, f"{len(names)} training singles have a vector and at least {FEWEST} are needed"), ()
    y = _without_own(np.stack([table[c] for c in names]), names, data.genes)
    mean = y.mean(axis=0)
    centred = y - y.mean(axis=1, keepdims=True)
    gram = centred @ centred.T
    judge = left_out(names, gram, prepare, n_folds, seed)
    setting, tried = choose(judge)
    slope = judge(setting)[1] if shrink else 1.0
    middle = gram.mean(axis=1, keepdims=True)
    weigh = prepare(names, gram - middle - middle.T + gram.mean())
    return _Part(singles, "", weigh, setting, slope, mean, y - mean), tried


def _without_own(y: np.ndarray, names: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    """Effects in which a condition's own gene moves as it does in the other conditions on average."""
    place = {g: j for j, g in enumerate(genes)}
    rows = [i for i, g in enumerate(names) if g in place]
    columns = [place[names[i]] for i in rows]
    y = y.copy()
    y[rows, columns] = (y[:, columns].sum(axis=0) - y[rows, columns]) / (len(names) - 1)
    return y
