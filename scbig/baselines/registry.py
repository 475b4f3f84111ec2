"""The baselines by name, and all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from anndata import AnnData

from scbig.baselines import (
    adapter,
    additive,
    auto,
    combination,
    condition_mean,
    contexts,
    control,
    elastic_net,
    fusion,
    kernel_ridge,
    knn,
    knockout,
    latent_additive,
    linear,
    low_rank,
    matching_mean,
    mean,
    neighbours,
    scgen,
    shuffled,
)
from scbig.baselines.base import Model, Skipped, TrainingData, as_effects
from scbig.errors import InputError, some

__all__ = ["ON_EMBEDDINGS", "ON_LATENT", "REGISTRY", "SEARCHED", "WITHOUT", "fit", "predictions"]

REGISTRY: dict[str, Callable[..., Model]] = {
    "control": control.fit,
    "mean": mean.fit,
    "condition_mean": condition_mean.fit,
    "additive": additive.fit,
    "low_rank": low_rank.fit,
    "combination": combination.fit,
    "linear": linear.fit,
    "matching_mean": matching_mean.fit,
    "shuffled": shuffled.fit,
    "knn": knn.fit,
    "kernel_ridge": kernel_ridge.fit,
    "elastic_net": elastic_net.fit,
    "latent_additive": latent_additive.fit,
    "fusion": fusion.fit,
    "neighbours": neighbours.fit,
    "adapter": adapter.fit,
    "scgen": scgen.fit,
    "knockout": knockout.fit,
    "contexts": contexts.fit,
    "auto": auto.fit,
}

ON_EMBEDDINGS = ("linear", "knn", "kernel_ridge", "elastic_net", "latent_additive", "fusion", "adapter", "neighbours")
"""Baselines that read embeddings of perturbed genes."""
WITHOUT: dict[str, dict[str, object]] = {"linear": {"embedding": None}, "latent_additive": {"embedding": ()}}
"""Those of them that can do without, and the options that say so."""
ON_LATENT = ("scgen", "knockout")
"""Baselines that need a latent of cells, ``TrainingData.latent``."""
SEARCHED = ("elastic_net", "fusion")
"""Baselines with an option ``trials``: settings tried by Optuna."""


def fit(name: str, data: TrainingData, **options: object) -> Model:
    """Fits one baseline by name.

    Raises:
        InputError: a name that is not in the registry.
    """
    if name not in REGISTRY:
        raise InputError(f"no baseline '{name}'; there are: {some(REGISTRY)}")
    return REGISTRY[name](data, **options)


def predictions(
    names: Sequence[str],
    data: TrainingData,
    conditions: Sequence[str],
    contexts: Sequence[str] | None = None,
    options: Mapping[str, Mapping[str, object]] | None = None,
) -> tuple[dict[str, AnnData], dict[str, list[Skipped]], dict[str, tuple[str, ...]]]:
    """Fits baselines and predicts the conditions as effects.

    Args:
        names: which baselines.
        data: what they are fitted on.
        conditions: what to predict.
        contexts: one per condition.
        options: keyword arguments of ``fit`` by baseline.

    Returns:
        Effects by baseline, what each could not predict and why, and the notes of each fit.
    """
    effects, skipped, notes = {}, {}, {}
    for name in names:
        model = fit(name, data, **(options or {}).get(name, {}))
        effects[name], skipped[name] = as_effects(model, conditions, contexts)
        notes[name] = model.notes
    return effects, skipped, notes
