"""Means of groups of cells, sparse or dense, in double precision."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from scbig.data.store import Rows

__all__ = ["group_means"]

_BLOCK = 16_384  # rows


def group_means(
    x: np.ndarray | sp.spmatrix | sp.sparray | Rows, group: Int[np.ndarray, " cells"], n_groups: int
) -> tuple[Float[np.ndarray, "groups genes"], Int[np.ndarray, " groups"]]:
    """The mean row of every group.

    Args:
        x: cells by genes, dense, sparse or rows on disk.
        group: the group of each cell, 0 to ``n_groups - 1``; a negative number leaves the cell out.
        n_groups: how many groups there are.

    Returns:
        Means, float64, one row per group (NaN for a group without cells), and the number of cells in each.
    """
    count = np.bincount(group[group >= 0], minlength=n_groups)
    total = np.zeros((n_groups, x.shape[1]))
    for start in range(0, x.shape[0], _BLOCK):
        part = group[start : start + _BLOCK]
        rows = np.flatnonzero(part >= 0)
        if not len(rows):
            continue
        # An indicator matrix sums all groups in one product; blocks bound the copy in double precision.
        member = sp.csr_array((np.ones(len(rows)), (part[rows], rows)), shape=(n_groups, len(part)))
        product = member @ x[start : start + _BLOCK]
        total += product.toarray() if sp.issparse(product) else np.asarray(product)
    means = np.full(total.shape, np.nan)
    np.divide(total, count[:, None], out=means, where=(count > 0)[:, None])
    return means, count.astype(np.int64)
