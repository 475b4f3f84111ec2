"""A negative control: the effect of some other perturbation."""

from __future__ import annotations

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.data.conditions import CONTROL, genes_of
from scbig.rng import generator

__all__ = ["fit"]


def fit(data: TrainingData, seed: int = 0) -> Model:
    """Predicts the training effect of another condition, drawn at random.

    It has the size and the shape of a real effect and says nothing about the condition asked for: a metric
    that cannot tell it from a prediction measures what perturbations share.

    Args:
        data: training effects.
        seed: of the draw, which hangs on the names of condition and context and not on their order. Conditions
            of as many genes are drawn from where there are any, and never the condition itself.
    """
    zero = np.zeros(len(data.genes))
    tables = {c: data.own(c) for c in set(data.contexts)}
    pooled = data.table("")

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        table = tables.get(context, pooled)
        others = sorted(set(table) - {condition})
        alike = [c for c in others if len(genes_of(c)) == len(genes_of(condition))] or others
        if not alike:
            return "no other training condition to take the effect of"
        return table[alike[generator(seed, f"shuffled {condition}@{context}").integers(len(alike))]]

    return Model("shuffled", data.genes, one_context(data), rule)
