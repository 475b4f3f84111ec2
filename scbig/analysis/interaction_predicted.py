"""What an anchor says of pairs it was fitted without, and how far the predicted departure can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from scbig.anchor import Anchor, fitter, out_of_fold, restricted
from scbig.data.conditions import genes_of, join

__all__ = ["Expected", "LeftOut", "expected", "left_out", "shifted"]

FEWEST = 9
"""Left-out conditions below which no 90% interval is stated."""


@dataclass(frozen=True)
class LeftOut:
    """Training conditions as the anchor predicts them when it is fitted without them.

    Attributes:
        conditions: canonical conditions.
        contexts: of each.
        kinds: what was known of each.
        effects: predicted.
        errors: measured minus predicted, the perturbed genes at 0.
    """

    conditions: tuple[str, ...]
    contexts: tuple[str, ...]
    kinds: tuple[str, ...]
    effects: Float[np.ndarray, "n genes"]
    errors: Float[np.ndarray, "n genes"]


def left_out(anchor: Anchor, kinds: Sequence[str] = ("combination",), folds: int = 5) -> LeftOut:
    """Refits the anchor without each part of its training conditions, with the settings that it has.

    Settings were chosen once on all of them, which makes these errors a little small.

    Args:
        anchor: a fitted anchor.
        kinds: kinds of condition that will be asked for.
        folds: in how many parts conditions are left out.
    """
    from dataclasses import replace

    needed = sorted({g for c in anchor.data.conditions for g in genes_of(c)})
    data = replace(anchor.data, embeddings=restricted(anchor.data.embeddings, needed))
    fit = fitter(anchor.method, anchor.settings or anchor.model.settings, anchor.seed)
    crossed = out_of_fold(fit, data, kinds, folds, anchor.seed)
    rows = [i for i, kind in enumerate(crossed.kind) if kind != "measured"]
    at = {g: i for i, g in enumerate(data.genes)}
    errors = np.asarray(data.effects[rows] - crossed.effects[rows], np.float32)
    for place, i in enumerate(rows):
        errors[place, [at[g] for g in genes_of(data.conditions[i]) if g in at]] = 0.0
    return LeftOut(
        tuple(data.conditions[i] for i in rows), tuple(data.contexts[i] for i in rows),
        tuple(crossed.kind[i] for i in rows), crossed.effects[rows], errors,
    )  # fmt: skip


def shifted(
    value: Float[np.ndarray, " n"], told: Float[np.ndarray, " m"], seen: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "3 n"]:
    """5th, 50th and 95th percentile of what will be measured, from how much more was measured where it was tried.

    Args:
        value: predicted.
        told: predicted of conditions left out.
        seen: measured of these.

    Returns:
        NaN where fewer than nine were left out. With fewer than 19 the ends are a little too near.
    """
    if len(told) < FEWEST:
        return np.full((3, len(value)), np.nan)
    ends = [
        np.quantile(seen - told, share, method=method)
        for share, method in ((0.05, "lower"), (0.5, "linear"), (0.95, "higher"))
    ]
    return np.stack([value + end for end in ends])


@dataclass(frozen=True)
class Expected:
    """Predicted effects of pairs, and their departure from the sum of the singles.

    Attributes:
        effects: of the pairs.
        away: effects less the sum of the singles', the perturbed genes at 0.
        relative: length of that over the length of the sum.
        middle: the same as it would be measured, noise and all: the median.
        low: lower end of its 90% interval.
        high: upper end.
    """

    effects: Float[np.ndarray, "n genes"]
    away: Float[np.ndarray, "n genes"]
    relative: Float[np.ndarray, " n"]
    middle: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"]
    high: Float[np.ndarray, " n"]


def expected(anchor: Anchor, pairs: Sequence[str], context: str, crossed: LeftOut) -> Expected:
    """Predicts pairs, and how far they depart from the sum of their singles.

    The interval is the predicted relative departure plus what was measured beyond it on combinations left out: its 5th
    and 95th percentile. Measured departures hold the noise of measurement, and so does what is covered.

    Args:
        anchor: a fitted anchor.
        pairs: canonical pairs.
        context: where.
        crossed: what the anchor said of training conditions without them.
    """
    effects = np.stack([anchor.effect(p, context) for p in pairs]).astype(np.float64)
    away, total = _apart(anchor, effects, pairs, [context] * len(pairs))
    relative = _size(away, total)
    rows = [
        i for i, kind in enumerate(crossed.kinds) if kind == "combination" and len(genes_of(crossed.conditions[i])) == 2
    ]
    names, contexts = ([each[i] for i in rows] for each in (crossed.conditions, crossed.contexts))
    told = seen = np.zeros(0)
    if rows:
        told = _size(*_apart(anchor, crossed.effects[rows], names, contexts))
        seen = _size(*_apart(anchor, crossed.effects[rows] + crossed.errors[rows], names, contexts))
    low, middle, high = np.maximum(shifted(relative, told, seen), 0.0)
    return Expected(effects, away, relative, middle, low, high)


def _apart(anchor: Anchor, effects: np.ndarray, pairs: Sequence[str], contexts: Sequence[str]):
    """Departures from the sum of the singles and the sums, the perturbed genes at 0."""
    at = {g: i for i, g in enumerate(anchor.data.genes)}
    keys = {(g, k) for p, k in zip(pairs, contexts, strict=True) for g in genes_of(p)}
    alone = {(g, k): np.asarray(anchor.effect(join([g]), k), np.float64) for g, k in keys}
    total = np.stack([sum(alone[g, k] for g in genes_of(p)) for p, k in zip(pairs, contexts, strict=True)])
    away = effects - total
    for row, pair in enumerate(pairs):
        own = [at[g] for g in genes_of(pair) if g in at]
        away[row, own] = total[row, own] = 0.0
    return away, total


def _size(away: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.linalg.norm(away, axis=1) / np.maximum(np.linalg.norm(total, axis=1), 1e-12)
