"""Welch's t-tests from sums and sums of squares: genes that go up or down, by batch, and weights from t."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int, Int8

from scbig.errors import InputError
from scbig.evaluation.rank_sum import benjamini_hochberg

__all__ = ["de_weights", "deg_classes", "macro_f1", "wmse"]

FDR = 0.05
"""False discovery rate below which a gene counts as responding."""

_BLOCK = 8192  # cells squared at once
_HELD = 8_000_000  # tests held at once: 64 MB an array
_FLAT = 1e-12  # variance relative to the mean square below which values count as equal: rounding of float64 sums
_SURE = 1.95  # a smaller |t| has p > 0.05 whatever the number of cells


@dataclass(frozen=True)
class _Moments:
    """Number, mean and sum of squared deviations, one row per sample."""

    n: np.ndarray
    mean: np.ndarray
    squares: np.ndarray
    scale: np.ndarray

    @property
    def error(self) -> np.ndarray:
        """Squared standard error of the mean; NaN for a single cell."""
        n = self.n[:, None]
        return np.divide(self.squares, n * (n - 1.0), out=np.full(self.mean.shape, np.nan), where=n > 1)


def _sums(
    x: np.ndarray | sp.spmatrix | sp.sparray, group: np.ndarray, n_groups: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells, sum and sum of squares of every group, in double precision; cells of a negative group are left out."""
    x = x.tocsr() if sp.issparse(x) else x
    n = np.bincount(group[group >= 0], minlength=n_groups).astype(np.float64)
    total, squares = np.zeros((n_groups, x.shape[1])), np.zeros((n_groups, x.shape[1]))
    for start in range(0, x.shape[0], _BLOCK):
        part = group[start : start + _BLOCK]
        rows = np.flatnonzero(part >= 0)
        member = sp.csr_array((np.ones(len(rows)), (part[rows], rows)), shape=(n_groups, len(part)))
        block = x[start : start + _BLOCK].astype(np.float64)
        for out in (total, squares):
            product = member @ block
            out += product.toarray() if sp.issparse(product) else np.asarray(product)
            if out is total:
                block = block.power(2) if sp.issparse(block) else np.square(block, out=block)
    return n, total, squares


def _moments(n: np.ndarray, total: np.ndarray, squares: np.ndarray) -> _Moments:
    mean = np.divide(total, n[:, None], out=np.full(total.shape, np.nan), where=n[:, None] > 0)
    scale = np.divide(squares, n[:, None], out=np.zeros(total.shape), where=n[:, None] > 0)
    spread = squares - total * np.nan_to_num(mean)
    return _Moments(n, mean, np.where(spread > _FLAT * squares, spread, 0.0), scale)


def _welch(x: _Moments, y: _Moments) -> tuple[np.ndarray, np.ndarray]:
    """Welch's t and degrees of freedom; t is 0 where nothing varies or differs, NaN where a side has a single cell."""
    error_x, error_y = x.error, y.error
    error = error_x + error_y
    difference = x.mean - y.mean
    difference = np.where(np.abs(difference) <= 1e-12 * np.sqrt(np.maximum(x.scale, y.scale)), 0.0, difference)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(difference == 0, np.where(np.isnan(error), np.nan, 0.0), difference / np.sqrt(error))
        freedom = error**2 / (error_x**2 / (x.n[:, None] - 1.0) + error_y**2 / (y.n[:, None] - 1.0))
    return t, freedom


def deg_classes(
    cells: np.ndarray | sp.spmatrix | sp.sparray,
    group: Int[np.ndarray, " cells"],
    n_groups: int,
    control: np.ndarray | sp.spmatrix | sp.sparray,
    batch: Int[np.ndarray, " cells"] | None = None,
    control_batch: Int[np.ndarray, " controls"] | None = None,
    least: int = 10,
) -> Int8[np.ndarray, "groups genes"]:
    """Whether each gene goes up (1), down (−1) or neither (0) in each group.

    In every batch Welch's t-test of the group's cells against the controls of that batch, with Benjamini-Hochberg
    FDR below 0.05 over genes; a gene has the class that more than half of the batches give it, else 0. Batches with
    fewer than ``least`` cells of the group or fewer controls are tested together, as if they were one batch; where
    even together they have too few, they have no say. A group for which no batch has a say is tested once, all its
    cells against all controls. A group of fewer than two cells has class 0 throughout.

    Args:
        cells: log-expression, cells by genes.
        group: the group of each cell, 0 to ``n_groups - 1``; a negative number leaves the cell out.
        n_groups: how many groups there are.
        control: log-expression of control cells.
        batch: any number per cell that tells batches apart; without, all cells are one batch.
        control_batch: the same for controls.
        least: cells on either side that a batch needs to be tested alone.

    Raises:
        InputError: batches of cells without batches of controls, or the other way round.
    """
    if (batch is None) != (control_batch is None):
        raise InputError("batches of the cells and of the controls are needed, or neither")
    if batch is None or control_batch is None:
        batch, control_batch = np.zeros(cells.shape[0], np.int64), np.zeros(control.shape[0], np.int64)
    codes, both = np.unique(np.concatenate([batch, control_batch]), return_inverse=True)
    batch, control_batch = both[: len(batch)], both[len(batch) :]
    n_batches, n_genes = len(codes), cells.shape[1]
    known = group >= 0
    count = np.bincount(group[known] * n_batches + batch[known], minlength=n_groups * n_batches)
    count = count.reshape(n_groups, n_batches)
    base = _sums(control, control_batch, n_batches)
    voter = _voters(count, base[0], max(least, 2))
    out = np.zeros((n_groups, n_genes), np.int8)
    step = max(1, _HELD // max(1, n_genes * int(voter.max() + 1)))
    for first in range(0, n_groups, step):
        last = min(first + step, n_groups)
        inside = np.flatnonzero((group >= first) & (group < last))
        mine = cells if len(inside) == cells.shape[0] else cells[inside]
        out[first:last] = _vote(mine, group[inside] - first, batch[inside], voter[first:last], base)
    return out


def _voters(count: np.ndarray, n_control: np.ndarray, least: int) -> np.ndarray:
    """Which test of its group a batch belongs to, numbered from 0 in each group; -1 for none; ``[groups, batches]``."""
    alone = (count >= least) & (n_control >= least)
    together = (count > 0) & ~alone
    enough = ((count * together).sum(axis=1) >= least) & ((n_control * together).sum(axis=1) >= least)
    voter = np.where(alone, np.cumsum(alone, axis=1) - 1, -1)
    voter = np.where(together & enough[:, None], alone.sum(axis=1)[:, None], voter)
    voter[(voter < 0).all(axis=1)] = 0
    return voter


def _vote(
    cells: np.ndarray | sp.spmatrix | sp.sparray,
    group: np.ndarray,
    batch: np.ndarray,
    voter: np.ndarray,
    base: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> np.ndarray:
    """The class of every gene by majority of a group's tests."""
    n_tests = voter.max(axis=1) + 1
    offset = np.concatenate([[0], np.cumsum(n_tests)])
    of = np.where(voter >= 0, offset[:-1, None] + voter, -1)
    at_group, at_batch = np.nonzero(of >= 0)
    controls = sp.csr_array(
        (np.ones(len(at_group)), (of[at_group, at_batch], at_batch)), shape=(offset[-1], len(base[0]))
    )
    treated = _moments(*_sums(cells, of[group, batch], int(offset[-1])))
    called = _called(treated, _moments(*(controls @ part for part in base)))
    owner = np.repeat(np.arange(len(voter)), n_tests)
    votes = sp.csr_array((np.ones(len(owner)), (owner, np.arange(len(owner)))))
    up, down = (votes @ (called == which).astype(np.float64) for which in (1, -1))
    half = n_tests[:, None] / 2.0
    return (up > half).astype(np.int8) - (down > half).astype(np.int8)


def _called(x: _Moments, y: _Moments) -> np.ndarray:
    """The sign of every difference that is significant, 0 for the others."""
    from scipy.special import stdtr

    t, freedom = _welch(x, y)
    p = np.where(np.isnan(t), np.nan, 1.0)
    # p above 0.05 is never rejected, so only clear differences need the slow function: the outcome is the same.
    clear = np.abs(t) > _SURE
    sure = np.isinf(t)
    p[clear & ~sure] = 2.0 * stdtr(freedom[clear & ~sure], -np.abs(t[clear & ~sure]))
    p[sure] = 0.0
    return np.where(benjamini_hochberg(p) < FDR, np.sign(np.nan_to_num(t)), 0.0)


def macro_f1(
    predicted: Int8[np.ndarray, "conditions genes"],
    observed: Int8[np.ndarray, "conditions genes"],
    keep: Bool[np.ndarray, "conditions genes"],
) -> Float[np.ndarray, " conditions"]:
    """Mean F1 of the classes up, down and unchanged that are predicted or observed, over the genes that count."""
    total, present = np.zeros(len(keep)), np.zeros(len(keep))
    for which in (-1, 0, 1):
        x, y = keep & (predicted == which), keep & (observed == which)
        size = x.sum(axis=1) + y.sum(axis=1)
        total += 2.0 * (x & y).sum(axis=1) / np.maximum(size, 1)
        present += size > 0
    return np.divide(total, present, out=np.full(len(keep), np.nan), where=present > 0)


def de_weights(
    cells: np.ndarray | sp.spmatrix | sp.sparray,
    group: Int[np.ndarray, " cells"],
    n_groups: int,
    control: np.ndarray | sp.spmatrix | sp.sparray | None = None,
) -> Float[np.ndarray, "groups genes"]:
    """How much each gene counts in ``wmse``: the more, the more surely it responds in the real cells.

    As in "Diversity by design" (Mejia et al. 2025, arXiv 2506.22641): absolute t of Welch's test, scaled within the group
    so that the smallest is 0 and the largest 1, squared, and divided by the sum. There a perturbation is compared
    with the cells of all others, so that what all perturbations share weighs little: leave out ``control`` for that.

    Args:
        cells: log-expression of real cells, cells by genes.
        group: the group of each cell, 0 to ``n_groups - 1``; a negative number leaves the cell out.
        n_groups: how many groups there are.
        control: control cells to compare with; None compares with the cells of all other groups.

    Returns:
        Weights; every row sums to 1, and is uniform where all t are equal. NaN for a group of fewer than two
        cells, or with fewer than two to compare with.
    """
    sums = _sums(cells, group, n_groups)
    if control is None:
        rest = [part.sum(axis=0, keepdims=True) - part for part in sums]
    else:
        rest = [np.repeat(part, n_groups, axis=0) for part in _sums(control, np.zeros(control.shape[0], np.int64), 1)]
    t = np.abs(_welch(_moments(*sums), _moments(*rest))[0])
    # A gene that is constant on both sides and differs has infinite t: as sure as the surest finite one.
    finite = np.where(np.isfinite(t), t, 0.0).max(axis=1, initial=0.0, keepdims=True)
    t = np.where(np.isinf(t), np.maximum(finite, 1.0), t)
    weight = (t - t.min(axis=1, keepdims=True)) ** 2
    total = weight.sum(axis=1, keepdims=True)
    return np.divide(weight, total, out=np.where(np.isnan(t), np.nan, 1.0 / t.shape[1]), where=total > 0)


def wmse(
    predicted: Float[np.ndarray, "conditions genes"],
    observed: Float[np.ndarray, "conditions genes"],
    weights: Float[np.ndarray, "conditions genes"],
    keep: Bool[np.ndarray, "conditions genes"],
) -> Float[np.ndarray, " conditions"]:
    """Squared error of the mean profile, averaged over genes with ``weights`` (``de_weights``).

    Weights are divided by their sum over the genes that count; NaN where that is 0.
    """
    weight = np.where(keep, weights, 0.0)
    squared = np.where(keep, predicted.astype(np.float64) - observed, 0.0) ** 2
    total = weight.sum(axis=1)
    return np.divide((weight * squared).sum(axis=1), total, out=np.full(len(keep), np.nan), where=total > 0)
