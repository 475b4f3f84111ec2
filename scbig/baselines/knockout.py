"""The perturbed gene is silenced in control cells, and what an autoencoder makes of it is read out as an effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np

from scbig.baselines.base import Model, TrainingData, one_context
from scbig.baselines.latent import Latent
from scbig.baselines.means import group_means
from scbig.baselines.smoother import FEWEST
from scbig.baselines.validation import folds
from scbig.data.conditions import CONTROL, genes_of
from scbig.errors import InputError, some

__all__ = ["RIDGES", "fit"]

RIDGES = tuple(10.0**p for p in range(-6, 4))
"""Ridges tried, in units of the mean squared latent difference."""

_DIRECTIONS = ("auto", "down", "up")


def fit(
    data: TrainingData,
    direction: str = "auto",
    *,
    ridge: float | int | None = None,
    quantile: float = 0.99,
    n_cells: int = 100,
    n_folds: int = 5,
    seed: int = 0,
) -> Model:
    """Predicts ``B (z̄(x with the genes masked) − z̄(x)) + b`` over control cells x of the context.

    z is the latent of an autoencoder, B a ridge regression from the latent differences of the training singles, of
    all contexts together, to their effects, and b the mean training effect of the context, counted once for each
    perturbed gene.

    Args:
        data: training effects, with a latent. In a table of effects, which has no cells, nothing is predicted and
            the reason says so.
        direction: ``down`` sets the gene to 0, ``up`` to a high quantile of the controls (where that is 0, to their
            highest value), ``auto`` is ``up`` where training perturbations raise their own gene on average.
        ridge: in units of the mean squared latent difference; chosen from ``RIDGES`` by cross-validation inside
            the training conditions when None.
        quantile: for ``up``.
        n_cells: control cells masked per context, at most.
        n_folds: of the cross-validation.
        seed: of the folds.

    Raises:
        InputError: an unknown direction, or a latent with other genes than the effects.
    """
    if direction not in _DIRECTIONS:
        raise InputError(f"direction '{direction}' for the baseline knockout; there are: {', '.join(_DIRECTIONS)}")
    latent, zero, start = data.latent, np.zeros(len(data.genes)), one_context(data)
    if latent is None:
        return Model("knockout", data.genes, start, lambda c, _: zero if c == CONTROL else "needs cells")
    if latent.genes != data.genes:
        raise InputError("the latent given to knockout has other genes, or in another order, than the training effects")
    place = {g: i for i, g in enumerate(data.genes)}
    effects = dict(zip(zip(data.conditions, data.contexts, strict=True), data.effects, strict=True))
    rows = sorted((c, k) for c, k in effects if c in place and k in latent.controls)
    if direction == "auto":
        own = [effects[c, k][place[c]] for c, k in rows]
        direction = "up" if own and np.mean(own) > 0 else "down"
    difference = _masking(latent, place, direction, quantile, n_cells)
    notes = [f"latent: {latent.name}", f"direction {direction}, {len(rows)} training singles"]
    few = f"{len(rows)} training singles are measured and at least {FEWEST} are needed"
    head: Callable[[np.ndarray], np.ndarray] | None = None
    if len(rows) >= FEWEST:
        z = np.stack([difference((c,), k) for c, k in rows])
        y = np.stack([effects[row].astype(np.float64) for row in rows])
        own = np.zeros(y.shape, bool)
        own[np.arange(len(rows)), [place[c] for c, _ in rows]] = True
        contexts = [k for _, k in rows]
        chosen = ridge if ridge is not None else _choose([c for c, _ in rows], contexts, z, y, own, n_folds, seed)
        notes.append(f"ridge {chosen:g}")
        head, means = _ridge(z, y, contexts, own, chosen)

    def rule(condition: str, context: str) -> np.ndarray | str:
        if condition == CONTROL:
            return zero
        genes = genes_of(condition)
        absent = [g for g in genes if g not in place]
        if absent:
            return f"not among the measured genes: {some(absent)}"
        if context not in latent.controls:
            return f"no training control cells in context {context}"
        if head is None:
            return few
        z_mean, y_mean = means.get(context, means[""])
        return head(difference(genes, context) - len(genes) * z_mean) + len(genes) * y_mean

    return Model("knockout", data.genes, start, rule, tuple(notes))


def _masking(
    latent: Latent, place: Mapping[str, int], direction: str, quantile: float, n_cells: int
) -> Callable[[tuple[str, ...], str], np.ndarray]:
    """From genes and a context to the mean latent difference that masking the genes in its controls makes."""
    cells = {k: x[:: max(1, -(-len(x) // n_cells))] for k, x in latent.controls.items()}
    base = {k: _mean(latent.encode(x)) for k, x in cells.items()}

    @cache
    def difference(genes: tuple[str, ...], context: str) -> np.ndarray:
        x = cells[context].copy()
        for gene in genes:
            now = latent.controls[context][:, place[gene]]
            high = float(np.quantile(now, quantile)) or float(now.max())
            x[:, place[gene]] = high if direction == "up" else 0.0
        return _mean(latent.encode(x)) - base[context]

    return difference


def _mean(z: np.ndarray) -> np.ndarray:
    return np.asarray(z).mean(axis=0, dtype=np.float64)


def _ridge(
    z: np.ndarray, y: np.ndarray, contexts: Sequence[str], own: np.ndarray, ridge: float
) -> tuple[Callable[[np.ndarray], np.ndarray], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """The linear head on deviations from the context's means, and these means; those of all rows under ""."""
    names = sorted(set(contexts))
    group = np.array([names.index(k) for k in contexts])
    z_means, y_means = (group_means(a, group, len(names))[0] for a in (z, y))
    means = {k: (z_means[i], y_means[i]) for i, k in enumerate(names)} | {"": (z.mean(axis=0), y.mean(axis=0))}
    dz, dy = z - z_means[group], y - y_means[group]
    # What a perturbation does to its own gene says nothing of others.
    dy = np.where(own, 0.0, dy)
    size = np.square(dz).sum() / max(len(dz), 1)
    weights = dy.T @ dz @ np.linalg.pinv(dz.T @ dz + ridge * (size or 1.0) * np.eye(z.shape[1]), hermitian=True)
    return lambda d: d @ weights.T, means


def _choose(
    names: Sequence[str],
    contexts: Sequence[str],
    z: np.ndarray,
    y: np.ndarray,
    own: np.ndarray,
    n_folds: int,
    seed: int,
) -> float:
    """The ridge of least squared error on left-out training conditions.

    The error, and no correlation, is asked, so that a latent that says nothing gives back the mean.
    """
    total = np.zeros(len(RIDGES))
    context = np.array(contexts)
    for held in folds(sorted(set(names)), n_folds, seed):
        out = np.isin(names, held)
        for i, ridge in enumerate(RIDGES):
            head, means = _ridge(z[~out], y[~out], context[~out].tolist(), own[~out], ridge)
            for k in sorted(set(context[out])):
                at = out & (context == k)
                z_mean, y_mean = means.get(k, means[""])
                left = head(z[at] - z_mean) + y_mean - y[at]
                total[i] += np.square(left[~own[at]]).sum()
    return RIDGES[int(np.argmin(total))]
