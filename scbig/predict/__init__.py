"""Sampling populations from trained runs."""

from scbig.predict.sampler import Ensemble, Predictor, load

__all__ = ["Ensemble", "Predictor", "load"]
