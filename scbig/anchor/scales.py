"""How large errors are wont to be: a scale per gene times a power law of a condition's difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["Scales", "fit_scales", "size_factor"]

_ROUNDS = 3
_CHECKS = 5  # folds that the power law has to prove itself in
_FEWEST = 10  # conditions below which difficulty is not believed
_SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_TINY = 1e-6


@dataclass(frozen=True)
class Scales:
    """Expected absolute error, up to a factor: ``scale[gene] · exp(level) · Π spread^power · cells``.

    Attributes:
        scale: by gene.
        kinds: kinds of condition that have a law of their own; the first is all of them together.
        n: conditions behind each law.
        levels: logarithm of the usual error relative to ``scale``.
        powers: exponent of each measure of difficulty, none negative.
        easiest: logarithm of the least difficulty seen; nothing is taken to be easier.
        noise: share of the squared error that falls with the number of cells.
        cells: usual number of cells; 0 where unknown.
    """

    scale: Float[np.ndarray, " genes"]
    kinds: tuple[str, ...]
    n: Int[np.ndarray, " kinds"]
    levels: Float[np.ndarray, " kinds"]
    powers: Float[np.ndarray, "kinds measures"]
    easiest: Float[np.ndarray, "kinds measures"]
    noise: Float[np.ndarray, " kinds"]
    cells: float

    def entries(self, kind: int, spread: np.ndarray | None, cells: np.ndarray | None) -> Float[np.ndarray, "n genes"]:
        """The scale of every entry, one row per condition; a single row where nothing tells conditions apart."""
        factor = np.full(1, self.levels[kind])
        if spread is not None:
            factor = factor + _log(spread, self.easiest[kind]) @ self.powers[kind]
        if cells is not None and self.cells:
            factor = factor + _of_cells(cells, self.cells, self.noise[kind])
        return np.exp(factor)[:, None] * self.scale


def size_factor(
    effect: Float[np.ndarray, "n genes"], base: Float[np.ndarray, "rows genes"], size: float | int
) -> np.ndarray:
    """How much wider an entry is for being predicted large: ``√(1 + size · (effect / base)²)``."""
    return np.sqrt(1 + size * np.square(effect / base)) if size else np.ones((1, 1))


def fit_scales(
    error: Float[np.ndarray, "n genes"],
    members: Sequence[Bool[np.ndarray, " n"]],
    kinds: Sequence[str],
    spread: Float[np.ndarray, "n measures"] | None,
    cells: Float[np.ndarray, " n"] | None,
) -> Scales:
    """Fits the scales to absolute errors.

    The scale of a gene is its mean absolute error, every condition's errors divided by their own mean, so that no
    condition decides for all; on a logarithmic scale it is drawn to the mean over genes, by as much as the variance
    over genes owes to sampling. The power law is fitted to the conditions' mean errors by least squares on logarithms,
    and taken where it is closer than a constant to conditions that it was not fitted on.

    Args:
        error: absolute errors, NaN where not counted.
        members: which conditions are of each kind.
        kinds: names of the kinds.
        spread: measures of difficulty.
        cells: numbers of cells.
    """
    known = ~np.isnan(error)
    filled = np.where(known, error, 0.0)
    per_row, per_column = np.maximum(known.sum(axis=1), 1), np.maximum(known.sum(axis=0), 1)
    total = max(float(filled.sum() / max(known.sum(), 1)), 1e-30)
    row = np.maximum(filled.sum(axis=1) / per_row, _TINY * total)
    for _ in range(_ROUNDS):
        column = np.maximum((filled / row[:, None]).sum(axis=0) / per_column, _TINY)
        row = np.maximum((filled / column).sum(axis=1) / per_row, _TINY * total)
    column = _shrunk(filled / row[:, None], known, per_column)
    row = np.maximum((filled / column).sum(axis=1) / per_row, _TINY * total)
    usual = 0.0 if cells is None else float(np.median(cells))
    measures = 0 if spread is None else spread.shape[1]
    laws = []
    for member in members:
        x = np.zeros((int(member.sum()), measures)) if spread is None else spread[member]
        floor = np.array([np.log(v[v > 0].min()) if (v > 0).any() else 0.0 for v in x.T])
        noise = None if cells is None else (cells[member], usual)
        laws.append((int(member.sum()), floor, *_law(np.log(row[member]), _log(x, floor), noise)))
    return Scales(
        scale=column,
        kinds=tuple(kinds),
        n=np.array([law[0] for law in laws], np.int64),
        levels=np.array([law[2] for law in laws], np.float64),
        powers=np.array([law[3] for law in laws], np.float64).reshape(len(laws), measures),
        easiest=np.array([law[1] for law in laws], np.float64).reshape(len(laws), measures),
        noise=np.array([law[4] for law in laws], np.float64),
        cells=usual,
    )


def _shrunk(relative: np.ndarray, known: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean relative error by gene, logarithms drawn to their mean (empirical Bayes)."""
    seen = known.any(axis=0)
    if not seen.all():
        # Nothing is known of a gene without a single error.
        out = np.full(len(seen), np.inf)
        out[seen] = _shrunk(relative[:, seen], known[:, seen], count[seen])
        return out
    mean = np.maximum(relative.sum(axis=0) / count, _TINY)
    spread = np.where(known, np.square(relative - mean), 0.0).sum(axis=0) / np.maximum(count - 1, 1)
    log = np.log(mean)
    sampling, total = float(np.median(spread / (count * mean**2))), float(log.var())
    keep = max(0.0, 1.0 - sampling / total) if total > 0 else 0.0
    return np.exp(log.mean() + keep * (log - log.mean()))


def _log(spread: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """Logarithms, nothing below the floor."""
    return np.log(np.maximum(spread, np.exp(floor)))


def _of_cells(cells: np.ndarray, usual: float, share: float | np.ndarray) -> np.ndarray:
    """Logarithm of the factor by which errors differ for the number of cells."""
    with np.errstate(divide="ignore"):  # no cell at all: an infinite interval
        return 0.5 * np.log((1 - share) + share * usual / cells) if share else np.zeros(len(cells))


def _law(y: np.ndarray, x: np.ndarray, noise: tuple[np.ndarray, float] | None) -> tuple[float, np.ndarray, float]:
    """Intercept, exponents and share of noise."""
    if not len(y):
        return 0.0, np.zeros(x.shape[1]), 0.0
    if noise is None and not x.shape[1]:
        return float(y.mean()), np.zeros(0), 0.0
    shares = _SHARES if noise is not None and len(y) >= _FEWEST else _SHARES[:1]
    best = (np.inf, 0.0, False)
    plain = np.zeros((len(y), 0))
    for share in shares:
        left = y - (_of_cells(*noise, share) if noise is not None else 0.0)
        costs = [(_held_out(left, plain), False)]
        if x.shape[1] and len(y) >= _FEWEST:
            costs.append((_held_out(left, x), True))
        for cost, believed in costs:
            if cost < best[0]:
                best = (cost, share, believed)
    _, share, believed = best
    left = y - (_of_cells(*noise, share) if noise is not None else 0.0)
    if not believed:
        return float(left.mean()), np.zeros(x.shape[1]), share
    return *_line(left, x), share


def _line(y: np.ndarray, x: np.ndarray) -> tuple[float, np.ndarray]:
    """Least squares with slopes that are not negative."""
    from scipy.optimize import nnls

    if not x.shape[1]:
        return float(y.mean()), np.zeros(0)
    middle = x.mean(axis=0)
    slope, _ = nnls(x - middle, y - y.mean())
    return float(y.mean() - middle @ slope), slope


def _held_out(y: np.ndarray, x: np.ndarray) -> float:
    """Squared error on conditions left out."""
    if len(y) < 2:
        return 0.0
    folds, cost = min(_CHECKS, len(y)), 0.0
    # Dealt by rank of the error: every fold has easy and difficult conditions, whatever their order.
    order = np.argsort(y, kind="stable")
    for fold in range(folds):
        out = order[fold::folds]
        kept = np.setdiff1d(order, out)
        start, slope = _line(y[kept], x[kept])
        cost += float(np.square(y[out] - start - x[out] @ slope).sum())
    return cost / len(y)
