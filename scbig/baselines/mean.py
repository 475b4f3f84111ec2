"""Every perturbation does what the average training perturbation does."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.data.conditions import CONTROL

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts the mean of the training effects, each condition weighing the same.

    The mean is taken within the context asked for; in a context without any training perturbation, over all
    training rows.
    """
    overall = data.effects.astype(np.float64).mean(axis=0)
    zero = np.zeros(len(data.genes))
    by_context = {c: np.mean(list(data.own(c).values()), axis=0) for c in set(data.contexts)}

    def rule(condition: str, context: str) -> np.ndarray | str:
        return zero if condition == CONTROL else by_context.get(context, overall)

    return Model("mean", data.genes, one_context(data), rule)
