"""Control cells moved by a mean effect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from scbig.errors import InputError

__all__ = ["MOVES", "Plan", "move", "plan", "thinned"]

MOVES = ("thin", "scale", "shift")
"""How cells are moved; see ``plan``."""
_MOST = {"thin": 1.3, "scale": 2.0}  # factor
_SILENT = 1e-6  # mean log-expression that is not divided by


class Plan(NamedTuple):
    """What takes cells of some mean to that mean plus an effect: ``factor × cell × (kept or not) + added``.

    Attributes:
        factor: of each gene.
        added: to each gene of every cell.
        kept: chance that a cell keeps its value of the gene; it is zero otherwise.
    """

    factor: Float[np.ndarray, "*conditions genes"]
    added: Float[np.ndarray, "*conditions genes"]
    kept: Float[np.ndarray, "*conditions genes"]


def plan(
    mean: Float[np.ndarray, "*conditions genes"], effect: Float[np.ndarray, "*conditions genes"], how: str = "thin"
) -> Plan:
    """How cells are moved by an effect.

    Args:
        mean: mean log-expression of the cells.
        effect: difference of mean log-expression.
        how: ``"shift"`` adds the effect to every cell, which keeps every variance and lets values become negative.
            ``"scale"`` multiplies each gene, at most by two, and adds the rest of a rise to all cells: zeros stay zeros
            where a gene falls, and nothing becomes negative. ``"thin"`` does the same, at most by 1.3, but takes half of
            a fall (as a factor) by scaling and half by making cells lose the gene, as cells with fewer transcripts do;
            the mean then moves by the effect on average over draws. Where the effect would take a mean below zero, it
            ends at zero.

    Raises:
        InputError: another ``how``.
    """
    if how not in MOVES:
        raise InputError(f"cells are moved by {', '.join(MOVES[:-1])} or {MOVES[-1]}, not '{how}'")
    ones = np.ones(mean.shape, np.float32)
    if how == "shift":
        return Plan(ones, np.asarray(effect, np.float32), ones)
    most, target = _MOST[how], np.maximum(mean + effect, 0.0)
    factor = target / np.maximum(mean, _SILENT)
    # Only there, or rounding would leave a trace in cells without the gene.
    rest = np.where(factor > most, target - mean * most, 0.0).astype(np.float32)
    if how == "scale":
        return Plan(np.minimum(factor, most).astype(np.float32), rest, ones)
    half = np.sqrt(np.minimum(factor, 1.0))
    return Plan(
        np.where(factor < 1.0, half, np.minimum(factor, most)).astype(np.float32), rest, half.astype(np.float32)
    )


def thinned(
    x: Float[np.ndarray, "cells genes"], kept: Float[np.ndarray, "cells genes"], numbers: Sequence[Sequence[int]]
) -> Float[np.ndarray, "cells genes"]:
    """Cells in which each value is kept by a chance of its own, and zero otherwise.

    Args:
        x: log-expression.
        kept: the chances.
        numbers: integers that name each cell's draw: the same ones give the same cell, whatever else is drawn.
    """
    if (kept >= 1.0).all():
        return x
    draws = np.stack([np.random.default_rng(list(each)).random(x.shape[1], np.float32) for each in numbers])
    return np.where(draws < kept, x, np.float32(0.0))


def move(
    x: Float[np.ndarray, "cells genes"],
    effect: Float[np.ndarray, " genes"],
    how: str = "thin",
    numbers: Int[np.ndarray, "cells integers"] | None = None,
) -> Float[np.ndarray, "cells genes"]:
    """Cells whose mean has moved by the effect.

    Args:
        x: log-expression of control cells.
        effect: difference of mean log-expression.
        how: as for :func:`plan`.
        numbers: name the draw of each cell; their places by default.

    Raises:
        InputError: another ``how``.
    """
    found = plan(x.mean(axis=0, dtype=np.float64), effect, how)
    numbers = np.arange(len(x))[:, None] if numbers is None else numbers
    kept = thinned(x, np.broadcast_to(found.kept, x.shape), numbers.tolist())
    return (kept * found.factor + found.added).astype(np.float32)
