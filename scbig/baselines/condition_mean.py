"""What the training cells of that very condition show."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.data.conditions import CONTROL

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts the training effect of the same condition.

    Strong where cells are held out rather than conditions.
    Where the condition was not seen in the context asked for, the mean over the contexts that have it.
    """
    tables = {c: data.table(c) for c in set(data.contexts)}
    pooled = data.table("")
    zero = np.zeros(len(data.genes))

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        return tables.get(context, pooled).get(condition, "no training cells of this condition")

    return Model("condition_mean", data.genes, one_context(data), rule)
