"""Wilcoxon rank-sum tests of many groups of cells against the same controls, all genes at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.errors import InputError

__all__ = ["RankSum", "benjamini_hochberg", "rank_sum"]

_DENSE_BLOCK = 8_000_000  # values of a dense matrix turned to columns at once: 32 MB in single precision

_Number = TypeVar("_Number", np.ndarray, float)


@dataclass(frozen=True)
class RankSum:
    """Tests of every group against the controls.

    Attributes:
        p: two-sided p-values; NaN for a group without cells.
        effect: chance that a cell of the group lies above a control cell, ties counted half: U / (n₁ n₂); 0.5 is no
            difference, NaN for a group without cells.
    """

    p: Float[np.ndarray, "groups genes"]
    effect: Float[np.ndarray, "groups genes"]


def rank_sum(
    cells: np.ndarray | sp.spmatrix | sp.sparray,
    group: Int[np.ndarray, " cells"],
    n_groups: int,
    control: np.ndarray | sp.spmatrix | sp.sparray,
) -> RankSum:
    """Two-sided Mann-Whitney U test of each group's cells against all control cells, gene by gene.

    The normal approximation with correction for ties and for continuity, as ``scipy.stats.mannwhitneyu`` (method
    ``asymptotic``) and cell-eval compute it; p is 1 where all values of a gene are equal. The values of a gene are
    sorted once for all groups, and zeros, most of single-cell data, are one block of ties that is only counted.

    Args:
        cells: expression in any unit that keeps order, cells by genes, dense or sparse; negative values are right too.
        group: the group of each cell, 0 to ``n_groups - 1``; a negative number leaves the cell out.
        n_groups: how many groups there are.
        control: the control cells, controls by genes.

    Raises:
        InputError: no control cells, a group beyond ``n_groups``, or values that are not finite.
    """
    if not control.shape[0]:
        raise InputError("no control cells to test against")
    if len(group) and group.max() >= n_groups:
        raise InputError(f"group {group.max()} of a cell is beyond the last one, {n_groups - 1}")
    if len(group) and group.min() < 0:
        cells, group = cells[np.flatnonzero(group >= 0)], group[group >= 0]
    n_genes = cells.shape[1]
    size = np.bincount(group, minlength=n_groups).astype(np.float64)
    code = group.astype(np.uint32)
    # Single precision orders single precision: the sort is twice as fast and needs half the memory.
    single = {np.dtype(cells.dtype), np.dtype(control.dtype)} <= {np.dtype(np.float32), np.dtype(np.float16)}
    kind = np.float32 if single else np.float64
    u, ties = np.empty((n_genes, n_groups)), np.empty((n_genes, n_groups))
    for j, ((x, rows), (y, _)) in enumerate(zip(_columns(cells), _columns(control), strict=True)):
        values = np.concatenate([x, y]).astype(kind, copy=False)
        if not np.isfinite(values.sum(dtype=np.float64)):
            raise InputError(f"cells or controls hold values that are not finite in column {j} (counted from 0)")
        owner = np.concatenate([code[rows], np.full(len(y), n_groups, np.uint32)])
        u[j], ties[j] = _gene(*_sorted(values, owner), size, control.shape[0])
    return _tests(u.T, ties.T, size[:, None], float(control.shape[0]))


def _columns(x: np.ndarray | sp.spmatrix | sp.sparray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Values other than zero and their rows, gene by gene."""
    if not sp.issparse(x):
        step = max(1, _DENSE_BLOCK // max(1, x.shape[0]))
        for start in range(0, x.shape[1], step):
            for column in np.ascontiguousarray(x[:, start : start + step].T):
                rows = np.flatnonzero(column)
                yield column[rows], rows
        return
    x = sp.csc_array(x)
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        values, rows = x.data[start:stop], x.indices[start:stop]
        stored = values != 0
        yield (values, rows) if stored.all() else (values[stored], rows[stored])


def _sorted(values: np.ndarray, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values in order, equal ones by owner; and their owners."""
    if values.dtype != np.float32:
        order = np.lexsort((owner, values))
        return values[order], owner[order]
    # One sort of integers instead of an indirect one: the bits of a float, its sign turned, order like the float.
    bits = values.view(np.uint32)
    bits = np.where(values < 0, ~bits, bits | np.uint32(1 << 31))
    key = (bits.astype(np.uint64) << np.uint64(32)) | owner
    key.sort()
    bits = (key >> np.uint64(32)).astype(np.uint32)
    bits = np.where(bits >> np.uint32(31), bits ^ np.uint32(1 << 31), ~bits)
    return bits.view(np.float32), key.astype(np.uint32)


def _gene(value: np.ndarray, owner: np.ndarray, size: np.ndarray, n_control: int) -> tuple[np.ndarray, np.ndarray]:
    """U and the sum of t³ − t over blocks of ties, of every group against the controls, for one gene.

    Args:
        value: values other than zero in order.
        owner: group of each, the number of groups for controls; in order among equal values.
        size: cells of each group, zeros too.
        n_control: control cells.
    """
    n_groups, n = len(size), len(value)
    here = np.bincount(owner, minlength=n_groups + 1)
    zeros, zero_controls = size - here[:n_groups], float(n_control - here[n_groups])
    below = np.concatenate([[0], np.cumsum(owner == n_groups)])  # controls before each place
    # Of the zeros only their place matters: after the negative values.
    first_positive = np.searchsorted(value, 0.0)
    u = zeros * (below[first_positive] + 0.5 * zero_controls)
    ties = _cubes(zeros + zero_controls) - _cubes(zero_controls)
    base = _cubes(zero_controls)
    if n:
        starts = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]]))
        edges = np.append(starts, n)
        length, tied = np.diff(edges), np.diff(below[edges])  # cells and controls at each value
        beaten = below[starts] + 0.5 * tied + zero_controls * (starts >= first_positive)
        u += np.bincount(owner, weights=np.repeat(beaten, length), minlength=n_groups + 1)[:n_groups]
        many = length > 1
        if many.any():
            base += _cubes(tied[many].astype(np.float64)).sum()
            ties += _tied_with_controls(owner, length, tied, many, n_groups)
    return u, ties + base


def _tied_with_controls(
    owner: np.ndarray, length: np.ndarray, tied: np.ndarray, many: np.ndarray, n_groups: int
) -> np.ndarray:
    """What each group adds to the ties of the controls, over values that more than one cell has."""
    inside = np.repeat(many, length)
    member, block = owner[inside], np.repeat(np.arange(many.sum()), length[many])
    new = np.concatenate([[True], (member[1:] != member[:-1]) | (block[1:] != block[:-1])])
    starts = np.flatnonzero(new)
    own = np.diff(np.append(starts, len(member))).astype(np.float64)
    controls = tied[many][block[starts]].astype(np.float64)
    added = _cubes(own + controls) - _cubes(controls)
    return np.bincount(member[starts], weights=added, minlength=n_groups + 1)[:n_groups]


def _cubes(t: _Number) -> _Number:
    return t * t * t - t


def _tests(u: np.ndarray, ties: np.ndarray, n: np.ndarray, m: float) -> RankSum:
    """The normal approximation of U of ``n`` cells against ``m`` controls."""
    from scipy.special import ndtr

    total, pairs = n + m, n * m
    empty = np.broadcast_to(n == 0, u.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = pairs / 12.0 * (total + 1.0 - ties / (total * (total - 1.0)))
        z = (np.abs(u - pairs / 2.0) - 0.5) / np.sqrt(variance)
        p = np.where(variance > 0, np.minimum(2.0 * ndtr(-z), 1.0), 1.0)
        effect = u / pairs
    return RankSum(np.where(empty, np.nan, p), np.where(empty, np.nan, effect))


def benjamini_hochberg(p: Float[np.ndarray, "rows genes"]) -> Float[np.ndarray, "rows genes"]:
    """False discovery rates along genes (Benjamini and Hochberg 1995), row by row.

    Missing p-values stay missing and do not count as tests.
    """
    missing = np.isnan(p)
    n = np.maximum((~missing).sum(axis=1, keepdims=True), 1)
    filled = np.where(missing, np.inf, p)
    order = np.argsort(filled, axis=1, kind="stable")
    rate = np.take_along_axis(filled, order, axis=1) * n / np.arange(1, p.shape[1] + 1)
    rate = np.minimum(np.minimum.accumulate(rate[:, ::-1], axis=1)[:, ::-1], 1.0)
    out = np.empty_like(rate)
    np.put_along_axis(out, order, rate, axis=1)
    return np.where(missing, np.nan, out)
