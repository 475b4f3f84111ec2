"""Sampling populations from trained runs."""

from scbig.predict.ensemble import Ensemble
from scbig.predict.reading import cell_table, load
from scbig.predict.sampler import Predictor

__all__ = ["Ensemble", "Predictor", "cell_table", "load"]
