"""The effects of single perturbations add up."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, missing_singles, one_context
from scbig.data.conditions import genes_of

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts ``δ_A + δ_B`` from the training effects of A and of B alone (Ahlmann-Eltze et al. 2025).

    A single that was not seen in the context asked for is taken from the mean over the contexts that have it.
    Conditions with a gene that was never perturbed alone in training have no prediction.
    """
    tables = {c: data.table(c) for c in set(data.contexts)}
    pooled = data.table("")
    zero = np.zeros(len(data.genes))

    def rule(condition: str, context: str) -> np.ndarray | str:
        table = tables.get(context, pooled)
        return missing_singles(condition, table) or sum((table[g] for g in genes_of(condition)), zero)

    return Model("additive", data.genes, one_context(data), rule)
