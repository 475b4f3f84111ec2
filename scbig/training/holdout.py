"""Cells of the training conditions that are kept back, for stopping."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Bool

from scbig.rng import generator

__all__ = ["hold_out"]


def hold_out(
    obs: pd.DataFrame, trainable: Bool[np.ndarray, " cells"], fraction: float, seed: int
) -> tuple[Bool[np.ndarray, " cells"], Bool[np.ndarray, " cells"]]:
    """Splits the trainable cells of every condition and context, controls included, into learned and kept back.

    Args:
        obs: ``condition`` and ``context`` of all cells.
        trainable: cells of the training part.
        fraction: kept back of each group; at least two cells where a group has ten or more, none of smaller ones.
        seed: the run's seed.

    Returns:
        Masks of the cells to learn from and of those kept back.
    """
    rng = generator(seed, "hold out")
    kept = np.zeros(len(obs), bool)
    rows = np.flatnonzero(trainable)
    columns = ["condition", "context"]
    keys = obs[columns].iloc[rows].groupby(columns, observed=True, sort=True).indices
    for name in sorted(keys, key=str):
        members = rows[keys[name]]
        if len(members) >= 10:
            kept[rng.choice(members, max(2, round(fraction * len(members))), replace=False)] = True
    return trainable & ~kept, kept
