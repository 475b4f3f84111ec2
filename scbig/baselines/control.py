"""Nothing happens: the effect is zero everywhere."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context

__all__ = ["fit"]


def fit(data: TrainingData) -> Model:
    """Predicts zero for every condition: the first negative control of any table."""
    zero = np.zeros(len(data.genes))
    return Model("control", data.genes, one_context(data), lambda condition, context: zero)
