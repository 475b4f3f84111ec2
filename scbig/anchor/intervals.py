"""Intervals around what an anchor predicts, calibrated on what it said of training conditions without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scbig.anchor.conformal import Calibration, calibrate
from scbig.anchor.crossfit import OutOfFold
from scbig.anchor.spread import effect_size, neighbour_error
from scbig.baselines import TrainingData
from scbig.baselines.sources import pairwise, unit_sources
from scbig.data.conditions import genes_of

__all__ = ["Intervals", "fit_intervals", "similarity"]


@dataclass(frozen=True)
class Intervals:
    """A calibration, and the errors of the conditions it was made on.

    Attributes:
        calibration: from effect and difficulty to an interval.
        conditions: the training conditions it rests on.
        errors: root mean squared out-of-fold error of each.
    """

    calibration: Calibration
    conditions: tuple[str, ...]
    errors: Float[np.ndarray, " known"]

    def of(
        self,
        data: TrainingData,
        conditions: Sequence[str],
        kinds: Sequence[str],
        effects: Float[np.ndarray, "n genes"],
        level: float | int = 0.9,
        modules: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends for predicted effects, by gene or by module.

        Args:
            data: what the anchor is fitted on; its embeddings say which conditions are alike.
            conditions: what is predicted.
            kinds: what is known of each, one of ``KINDS``.
            effects: predicted effects.
            level: share of genes to be covered, on average over conditions.
            modules: of the mean effects of modules.

        Returns:
            NaN for measured conditions, whose effect is not a prediction; infinite where too few conditions of any kind
            were left out to say anything.
        """
        similar = similarity(data, conditions, self.conditions)
        low, high = self.calibration.intervals(
            effects, kinds, _difficulty(effects, similar, self.errors), level, modules
        )
        known = np.array([kind == "measured" for kind in kinds])[:, None]
        return np.where(known, np.nan, low), np.where(known, np.nan, high)


def _difficulty(effects: np.ndarray, similar: np.ndarray, errors: np.ndarray) -> np.ndarray:
    return np.stack([effect_size(effects), neighbour_error(similar, errors)], axis=1)


def similarity(data: TrainingData, rows: Sequence[str], columns: Sequence[str]) -> Float[np.ndarray, "rows columns"]:
    """How alike conditions are: singles by the mean cosine of their embeddings, others by the share of genes in common.

    NaN of a condition to itself, which must not vouch for itself.
    """
    sets = [[set(genes_of(c)) for c in names] for names in (rows, columns)]
    out = np.array([[len(a & b) / max(len(a), len(b), 1) for b in sets[1]] for a in sets[0]], np.float64)
    out = out.reshape(len(rows), len(columns))
    if any(each.mask.any() for each in data.embeddings.values()):
        each = [pairwise(known, rows, columns) for known in unit_sources(data, None, "intervals").values()]
        single = [np.array([len(s) == 1 for s in side]) for side in sets]
        out = np.where(np.outer(*single), np.mean(np.nan_to_num(each), axis=0), out)
    return np.where(np.array(rows)[:, None] == np.array(columns)[None], np.nan, out)


def fit_intervals(data: TrainingData, crossed: OutOfFold, groups: Mapping[str, str], seed: int = 0) -> Intervals | None:
    """Calibrates on the rows that were left out; None where there are none.

    Args:
        data: the training data.
        crossed: what was said of its rows without them.
        groups: module by gene.
        seed: of the calibration's folds.
    """
    rows = [i for i, kind in enumerate(crossed.kind) if kind != "measured"]
    if not rows:
        return None
    genes = np.array(data.genes)
    names = tuple(data.conditions[i] for i in rows)
    predicted = crossed.effects[rows]
    own = np.array([np.isin(genes, genes_of(c)) for c in names])
    observed = np.where(own, np.nan, data.effects[rows]).astype(np.float32)
    errors = np.sqrt(np.nanmean(np.square(predicted - observed, dtype=np.float64), axis=1))
    errors = np.maximum(errors, 1e-12)
    spread = _difficulty(predicted, similarity(data, names, names), errors)
    kinds = [crossed.kind[i] for i in rows]
    cells = np.asarray(data.n_cells)[rows]
    found = calibrate(predicted, observed, data.genes, kinds, spread, cells, groups, seed)
    return Intervals(found, names, errors)
