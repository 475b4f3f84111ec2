"""Single effects add up after their noise is cut away by a low-rank projection."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, fitted_contexts, missing_singles, one_context
from scbig.data.conditions import genes_of

__all__ = ["RANKS", "fit"]

RANKS = (2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100)
"""Ranks tried; the full rank is tried too and equals the additive baseline."""


def fit(data: TrainingData, rank: int | None = None, folds: int = 5) -> Model:
    """Predicts ``V Vᵀ (δ_A + δ_B)`` with V the leading singular vectors of the training effects, uncentred.

    The training effects are those of all training conditions, singles and combinations.

    Args:
        data: training effects.
        rank: columns of V. Chosen when None: combinations of the training set whose singles are there too
            are left out fold by fold, V is computed without them, and the rank of best mean Pearson
            correlation with their effects is taken.
        folds: how many folds.

    Returns:
        The model; its notes say which rank was taken. Without any training combination to choose the rank on
        and none given, nothing is predicted and the reason says so.
    """
    parts, notes = {}, []
    for context in fitted_contexts(data):
        own = data.own(context)
        effects = own if len(own) > 1 else data.table(context)
        chosen = rank or _choose(effects, folds)
        basis = None if chosen is None else _basis(np.stack(list(effects.values())), chosen)
        parts[context] = (data.table(context), basis)
        if context and chosen is not None:
            notes.append(f"rank {len(basis)} of {len(effects)} in context {context}")
    zero = np.zeros(len(data.genes))

    # A context never trained on gets the model of all contexts together.
    last = list(parts)[-1]

    def rule(condition: str, context: str) -> np.ndarray | str:
        table, basis = parts.get(context, parts[last])
        reason = missing_singles(condition, table)
        if reason:
            return reason
        if basis is None:
            return "no training combination with both singles to choose the rank on: give rank="
        # One gene more or less in the sum does not matter to a linear map: project once.
        return sum((table[g] for g in genes_of(condition)), zero) @ basis.T @ basis

    return Model("low_rank", data.genes, one_context(data), rule, tuple(notes))


def _basis(effects: np.ndarray, rank: int) -> np.ndarray:
    return np.linalg.svd(effects, full_matrices=False)[2][:rank]


def _choose(effects: dict[str, np.ndarray], folds: int) -> int | None:
    """The rank that predicts left-out training combinations best; None without any."""
    names = list(effects)
    sums = {c: genes_of(c) for c in names if len(genes_of(c)) > 1}
    usable = sorted(c for c, genes in sums.items() if all(g in effects for g in genes))
    if len(usable) < 2:
        return None
    score = np.zeros(len(RANKS) + 1)
    # Sorted names dealt in turn: the folds depend on nothing but the names.
    for fold in range(min(folds, len(usable))):
        left = set(usable[fold::folds])
        kept = np.stack([effects[c] for c in names if c not in left])
        basis = np.linalg.svd(kept, full_matrices=False)[2]
        truth = np.stack([effects[c] for c in sorted(left)])
        total = np.stack([np.sum([effects[g] for g in sums[c]], axis=0) for c in sorted(left)])
        loading = total @ basis.T
        for i, r in enumerate(RANKS):
            score[i] += _pearson(loading[:, :r] @ basis[:r], truth).sum()
        score[-1] += _pearson(total, truth).sum()
    best = int(np.argmax(score))
    return RANKS[best] if best < len(RANKS) else len(names)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    norm = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.divide((x * y).sum(axis=1), norm, out=np.zeros(len(x)), where=norm > 0)
