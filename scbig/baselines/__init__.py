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
    training_data_from_rows,
)
from scbig.baselines.latent import fit_latent, latent_of
from scbig.baselines.means import group_means
from scbig.baselines.registry import ON_EMBEDDINGS, ON_LATENT, REGISTRY, SEARCHED, WITHOUT, fit, predictions

__all__ = [
    "ON_EMBEDDINGS",
    "ON_LATENT",
    "REGISTRY",
    "SEARCHED",
    "WITHOUT",
    "Embedding",
    "Model",
    "Skipped",
    "TrainingData",
    "as_cells",
    "as_effects",
    "fit",
    "fit_latent",
    "group_means",
    "latent_of",
    "predictions",
    "training_data",
    "training_data_from_effects",
    "training_data_from_rows",
]
