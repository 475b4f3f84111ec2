"""Predictions of the training conditions by a baseline that was fitted without them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from scbig.baselines import Model, TrainingData
from scbig.baselines.validation import folds
from scbig.data.conditions import CONTROL, genes_of

__all__ = ["KINDS", "OutOfFold", "kind_of", "out_of_fold", "without"]

KINDS = ("measured", "combination", "partly", "unseen", "context")
"""What is known of a condition in a context: itself; every part of a combination alone; some parts; none; itself, but
only in other contexts."""


@dataclass(frozen=True)
class OutOfFold:
    """What the anchor says of each training row without having seen it.

    Attributes:
        effects: one row per row of the training data; the measured effect where a row was not left out.
        kind: what was known of the row when it was predicted, one of ``KINDS``.
        reasons: why there was no prediction, by row; such a row has the mean effect of what was left.
        skill: correlation of predicted and measured effect, both taken to the mean of what was left; NaN where the row
            was not left out.
    """

    effects: Float[np.ndarray, "rows genes"]
    kind: tuple[str, ...]
    reasons: dict[int, str]
    skill: Float[np.ndarray, " rows"]


def kind_of(measured: Collection[tuple[str, str]], condition: str, context: str) -> str:
    """What is known of a condition.

    Args:
        measured: conditions and contexts in training.
        condition: canonical condition.
        context: where it is asked for.
    """
    anywhere = {name for name, _ in measured}
    if (condition, context) in measured or condition == CONTROL:
        return "measured"
    if condition in anywhere:
        return "context"
    genes = genes_of(condition)
    known = sum(gene in anywhere for gene in genes)
    if len(genes) > 1 and known == len(genes):
        return "combination"
    return "partly" if known else "unseen"


def without(data: TrainingData, out: Bool[np.ndarray, " rows"]) -> TrainingData:
    """The training data less some rows; controls stay."""
    kept = np.flatnonzero(~out)
    return replace(
        data,
        conditions=tuple(data.conditions[i] for i in kept),
        contexts=tuple(data.contexts[i] for i in kept),
        effects=data.effects[kept],
        n_cells=data.n_cells[kept],
    )


def out_of_fold(
    fit: Callable[[TrainingData], Model], data: TrainingData, kinds: Iterable[str], n_folds: int = 5, seed: int = 0
) -> OutOfFold:
    """Predicts training rows as if they had not been measured, the way that conditions will be asked for.

    Combinations whose parts are all in training are always left out, each with its fold, since a combination in
    training would otherwise be met only with its own effect. Singles are left out, together with every combination that
    has the gene, where unseen genes will be asked for; a condition is left out of a whole context where the context
    will be asked for.

    Args:
        fit: from training data to a model.
        data: all training data.
        kinds: kinds of condition that will be asked for.
        n_folds: how many parts each of these is left out in.
        seed: of the folds.
    """
    kinds = set(kinds)
    rows = list(zip(data.conditions, data.contexts, strict=True))
    effects = np.array(data.effects, np.float32)
    kind, reasons = ["measured"] * len(rows), {}
    skill = np.full(len(rows), np.nan)
    measured, anywhere = set(rows), set(data.conditions)

    def predict(out: np.ndarray, wanted: Sequence[int]) -> None:
        rest = without(data, out)
        if not len(rest.conditions):
            return
        left = set(zip(rest.conditions, rest.contexts, strict=True))
        model = fit(rest)
        predicted = model.predict([rows[i][0] for i in wanted], [rows[i][1] for i in wanted])
        where = np.array(rest.contexts)
        for i, effect in zip(wanted, predicted, strict=True):
            condition, context = rows[i]
            here = where == context
            mean = rest.effects[here if here.any() else slice(None)].mean(axis=0)
            if np.isnan(effect).any():
                reasons[i] = str(model.rule(condition, context))
                effect = mean
            effects[i], kind[i] = effect, kind_of(left, condition, context)
            skill[i] = _correlation(effect - mean, data.effects[i] - mean)

    def dealt(conditions: list[str]) -> list[tuple[str, ...]]:
        return folds(conditions, n_folds, seed) if len(conditions) > 1 else [(each,) for each in conditions]

    if kinds & {"unseen", "partly"}:
        singles = sorted({c for c in anywhere if len(genes_of(c)) == 1})
        for held in dealt(singles):
            gone = set(held)
            out = np.array([bool(gone & set(genes_of(c))) for c, _ in rows])
            predict(out, [i for i, (c, _) in enumerate(rows) if c in gone])
    combinations = sorted({c for c, k in measured if kind_of(measured - {(c, k)}, c, k) == "combination"})
    for held in dealt(combinations):
        out = np.array([c in held for c, _ in rows])
        predict(out, np.flatnonzero(out).tolist())
    if "context" in kinds:
        for context in sorted(set(data.contexts)):
            out = np.array([k == context for _, k in rows])
            elsewhere = {c for c, k in rows if k != context}
            predict(out, [i for i in np.flatnonzero(out).tolist() if rows[i][0] in elsewhere])
    return OutOfFold(effects, tuple(kind), reasons, skill)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson correlation; 0 where either side is constant."""
    if np.abs(x).max() < 1e-6 * max(float(np.abs(y).max()), 1e-30):
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / size if size else 0.0
