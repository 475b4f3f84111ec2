"""A bilinear model between gene factors and perturbation factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scbig.baselines.base import Model, TrainingData, fitted_contexts, one_context
from scbig.baselines.sources import chosen_sources, side_by_side
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import some

__all__ = ["fit"]


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    n_factors: int = 10,
    ridge: float | int = 0.1,
) -> Model:
    """Fits ``Y ≈ G W Pᵀ + b`` by ridge regression (Ahlmann-Eltze et al. 2025, equations 1–2).

    ``Y`` is genes × training conditions, ``b`` its mean over conditions, ``G`` the leading principal
    components of Y over genes, ``P`` one row per condition: the factors of the perturbed gene, summed over a
    combination. ``W = (GᵀG + λ)⁻¹ Gᵀ (Y − b) P (PᵀP + λ)⁻¹``.

    Args:
        data: training effects. Y may hold effects instead of expression, as b takes up what all conditions
            share.
        embedding: a source in ``data.embeddings`` for P, or several: their unit vectors side by side, zeros where
            a source lacks the gene. None takes the perturbed gene's own row of G, which asks that the gene be
            measured.
        n_factors: components of G; never more than training conditions.
        ridge: λ.

    Raises:
        InputError: a source that is not there.
    """
    known = _factors(data, embedding) if embedding else None
    told = embedding if isinstance(embedding, str) else " or ".join(embedding or ())
    where = f"no vector in {told}" if embedding else "not among the measured genes"
    models, notes = {}, []
    for context in fitted_contexts(data):
        own = data.own(context)
        table = own if len(own) > 1 else data.table(context)
        models[context] = _solve(table, data.genes, known, n_factors, ridge)
        if context:
            notes.append(f"{models[context][3]} of {len(table)} conditions used in context {context}")

    # A context never trained on gets the model of all contexts together.
    last = list(models)[-1]

    def rule(condition: str, context: str) -> np.ndarray | str:
        weights, intercept, factors, used = models.get(context, models[last])
        if condition == CONTROL:
            return np.zeros(len(data.genes))
        absent = [g for g in genes_of(condition) if g not in factors]
        if absent:
            return f"{where}: {some(absent)}"
        if not used:
            return "no training condition has perturbation factors"
        return weights @ np.sum([factors[g] for g in genes_of(condition)], axis=0) + intercept

    return Model("linear", data.genes, one_context(data), rule, tuple(notes))


def _factors(data: TrainingData, embedding: str | Sequence[str]) -> Mapping[str, np.ndarray]:
    """One source as it is, for the published form; several brought to one length first."""
    if isinstance(embedding, str):
        return chosen_sources(data, embedding, "linear")[embedding]
    return side_by_side(chosen_sources(data, embedding, "linear"))


def _solve(
    table: Mapping[str, np.ndarray],
    genes: tuple[str, ...],
    known: Mapping[str, np.ndarray] | None,
    n_factors: int,
    ridge: float | int,
) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray], int]:
    """``G W``, b, the perturbation factors by gene, and how many conditions were used."""
    y = np.stack(list(table.values()), axis=1)
    u, s, _ = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    # Components without variance carry rounding only.
    n_factors = min(n_factors, int((s > 1e-10 * max(s[0], 1e-30)).sum()))
    g = u[:, :n_factors] * s[:n_factors]
    factors = dict(zip(genes, g, strict=True)) if known is None else known
    usable = [i for i, c in enumerate(table) if all(x in factors for x in genes_of(c))]
    if not usable:
        return np.zeros((len(genes), 0)), y.mean(axis=1), factors, 0
    names = list(table)
    p = np.stack([np.sum([factors[x] for x in genes_of(names[i])], axis=0) for i in usable])
    y = y[:, usable]
    b = y.mean(axis=1)
    left = np.linalg.solve(g.T @ g + ridge * np.eye(g.shape[1]), g.T @ (y - b[:, None]))
    w = np.linalg.solve(p.T @ p + ridge * np.eye(p.shape[1]), p.T @ left.T).T
    return g @ w, b, factors, len(usable)
