"""The batch-aware average treatment effect: every batch weighs the same, however many cells it has."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.baselines import group_means
from scbig.errors import InputError

__all__ = ["batch_effects"]

_BLOCK = 16_384  # rows


def batch_effects(
    x: np.ndarray | sp.spmatrix | sp.sparray,
    condition_group: Int[np.ndarray, " cells"],
    n_groups: int,
    batch: Int[np.ndarray, " cells"],
    control: Bool[np.ndarray, " cells"],
    per_batch: bool = True,
) -> Float[np.ndarray, "groups genes"]:
    """Mean over batches of what a condition changes in each (Cole et al. 2026).

    With controls per batch: the mean of the condition's cells in a batch less the mean of the controls there,
    averaged over the batches that have cells of both. With global controls: the mean of the condition's cells
    in a batch, averaged over the batches that have any, less the mean of controls in a batch, averaged over the
    batches that have those.

    Args:
        x: log-expression, cells by genes.
        condition_group: the condition of each cell, 0 to ``n_groups - 1``; a negative number leaves it out.
        n_groups: how many conditions there are.
        batch: the batch of each cell, from 0; numbers may be missing.
        control: control cells; their ``condition_group`` does not matter.
        per_batch: whether effects are taken to the controls of the same batch.

    Returns:
        Effects, float64; NaN for a condition without cells or, with controls per batch, none beside controls.

    Raises:
        InputError: cells without a batch (a negative number), or no control cell at all.
    """
    if len(batch) and batch.min() < 0:
        raise InputError(f"{int((batch < 0).sum())} cells have no batch: batch-aware effects need one for every cell")
    if not control.any():
        raise InputError("no control cells: effects cannot be measured")
    codes, number = np.unique(batch, return_inverse=True)
    base, n_control = group_means(x, np.where(control, number, -1), len(codes))
    has_control = n_control > 0
    used = ~control & (condition_group >= 0)
    if per_batch:
        used &= has_control[number]
    group, number = condition_group[used], number[used]
    # One weight per cell instead of a mean per condition and batch: there are too many of those to hold.
    pairs, pair, n = np.unique(group * len(codes) + number, return_inverse=True, return_counts=True)
    of, where = np.divmod(pairs, len(codes))
    batches = np.bincount(of, minlength=n_groups)
    share = 1.0 / (n[pair] * batches[group])
    effects = _weighted_sums(x, np.flatnonzero(used), group, share, n_groups)
    if per_batch:
        present = sp.csr_array((1.0 / batches[of], (of, where)), shape=(n_groups, len(codes)))
        effects -= present @ np.where(has_control[:, None], base, 0.0)
    else:
        effects -= base[has_control].mean(axis=0)
    effects[batches == 0] = np.nan
    return effects


def _weighted_sums(x, rows: np.ndarray, group: np.ndarray, weight: np.ndarray, n_groups: int) -> np.ndarray:
    """Weighted sums of the given ascending rows by group; blocks bound the copy in double precision."""
    out = np.zeros((n_groups, x.shape[1]))
    for start in range(0, x.shape[0], _BLOCK):
        block = x[start : start + _BLOCK]
        at = slice(*np.searchsorted(rows, [start, start + _BLOCK]))
        member = sp.csr_array((weight[at], (group[at], rows[at] - start)), shape=(n_groups, block.shape[0]))
        product = member @ block
        out += product.toarray() if sp.issparse(product) else np.asarray(product)
    return out
