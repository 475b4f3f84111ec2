"""Reference predictors: one file each, one interface, ``fit(data, **options) -> Model``."""

from scbig.baselines.base import (
    Embedding,
    Model,
    Skipped,
    TrainingData,
    as_cells,
    as_effects,
    training_data,
    training_data_from_effects,
)
from scbig.baselines.means import group_means
from scbig.baselines.registry import REGISTRY, fit, predictions

__all__ = [
    "REGISTRY",
    "Embedding",
    "Model",
    "Skipped",
    "TrainingData",
    "as_cells",
    "as_effects",
    "fit",
    "group_means",
    "predictions",
    "training_data",
    "training_data_from_effects",
]
