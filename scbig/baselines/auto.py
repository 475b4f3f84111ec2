"""For each condition the baseline that suits what is known of it; what the flow starts from by default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

import numpy as np

from scbig.baselines import additive, combination, contexts, mean, neighbours
from scbig.baselines.base import Model, TrainingData, missing_singles, one_context
from scbig.data.conditions import CONTROL, genes_of, join

__all__ = ["fit"]

_PARTS = {"combination": combination, "contexts": contexts, "neighbours": neighbours}


def fit(
    data: TrainingData,
    embedding: str | Sequence[str] | None = None,
    *,
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Model:
    """Predicts every condition from the most that is known of it.

    A condition measured in training has its measured effect. One that was measured in other contexts only is left to
    ``contexts``; a combination whose parts were all measured to ``combination``, or where that has no answer to
    ``additive``; a single that was never perturbed to ``neighbours``, or without any embedding to ``mean``. A
    combination with unmeasured parts is the sum of what its parts get.

    Args:
        data: training effects.
        embedding: sources of ``neighbours``; all by default.
        parts: options by baseline, such as the ``settings`` of an earlier fit.
        seed: of all draws.

    Returns:
        The model; its ``settings`` hold those of the parts that were asked so far.
    """
    found: dict[str, Mapping[str, Any]] = {}

    # Each only where it is asked: a screen of singles needs no model of combinations.
    @cache
    def part(name: str) -> Model:
        options = {"seed": seed, **(parts or {}).get(name, {})}
        if name == "neighbours":
            options["embedding"] = embedding
        model = _PARTS[name].fit(data, **options)
        found[name] = dict(model.settings)
        return model

    sums, means = additive.fit(data), mean.fit(data)
    measured = {context: data.own(context) for context in set(data.contexts)}
    everywhere = data.table("")
    zero = np.zeros(len(data.genes))

    def choose(condition: str, context: str) -> Model | None:
        """The model that answers; None where there is nothing to predict."""
        if condition in measured.get(context, ()) or condition == CONTROL:
            return None
        if condition in everywhere:
            return part("contexts")
        if len(genes_of(condition)) > 1:
            return part("combination") if not missing_singles(condition, everywhere) else sums
        return part("neighbours") if data.embeddings else means

    @cache
    def answer(condition: str, context: str) -> tuple[np.ndarray, dict[str, float | str]]:
        model = choose(condition, context)
        if model is None:
            return measured[context][condition] if condition != CONTROL else zero, {"basis": "measured"}
        told = model.rule(condition, context)
        if not isinstance(told, str):
            return told, {"basis": model.name, **model.account(condition, context)}
        if len(genes_of(condition)) > 1:
            # Sorted, so that the sum does not hang on the order of the genes.
            each = [answer(join([gene]), context)[0] for gene in sorted(genes_of(condition))]
            return np.sum(each, axis=0), {"basis": "sum of its parts", "because": told}
        usual = cast(np.ndarray, means.rule(condition, context))  # a mean always answers
        return usual, {"basis": "mean of the training effects", "because": told, "kept": 0.0}

    return Model(
        "auto",
        data.genes,
        one_context(data),
        lambda condition, context: answer(condition, context)[0],
        account=lambda condition, context: answer(condition, context)[1],
        settings={"parts": found},
    )
