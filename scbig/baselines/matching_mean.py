"""The mean effect of the training conditions that share a perturbed gene."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import some

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts the matching mean (Viñas Torné et al. 2025, Systema).

    For one gene, the mean training effect of the conditions that perturb it, alone or in a combination. For a
    combination, the mean of its genes' means, each gene weighing the same whatever its number of conditions.
    Genes that no training condition perturbs are left out of that mean; without any, there is no prediction.
    """
    tables = {c: _by_gene(data.table(c)) for c in set(data.contexts)}
    pooled = _by_gene(data.table(""))
    zero = np.zeros(len(data.genes))

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        means = tables.get(context, pooled)
        genes = genes_of(condition)
        found = [means[g] for g in genes if g in means]
        return np.mean(found, axis=0) if found else f"no training condition perturbs {some(genes)}"

    return Model("matching_mean", data.genes, one_context(data), rule)


def _by_gene(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    rows: dict[str, list[np.ndarray]] = {}
    for condition in sorted(table):
        for gene in genes_of(condition):
            rows.setdefault(gene, []).append(table[condition])
    return {gene: np.mean(effects, axis=0) for gene, effects in rows.items()}
