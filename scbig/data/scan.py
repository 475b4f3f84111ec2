"""Going through the values of a screen once to check them, and once more to take what is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float

from scbig.data.source import Source, sparse_rows
from scbig.errors import InputError, some

__all__ = ["enough_cells", "gather", "kept_genes", "refuse_values", "scan"]


def scan(
    source: Source,
    *,
    normalized: bool,
    layer: str | None = None,
    targets: Collection[str] = (),
    min_genes: int = 0,
    min_cells_per_gene: int = 0,
) -> tuple[Bool[np.ndarray, " cells"], Bool[np.ndarray, " genes"], Float[np.ndarray, " cells"]]:
    """Checks every value and says what stays.

    Args:
        source: the cells.
        normalized: whether they are said to be log-normalised; else they must be counts.
        layer: the layer that was asked for, for the message.
        targets: genes that stay however few cells express them.
        min_genes: fewest genes that a cell must express to stay.
        min_cells_per_gene: fewest of the cells that stay in which a gene must be expressed to stay.

    Returns:
        Which cells stay, which genes stay, and the total of every cell over all genes.

    Raises:
        InputError: values that are negative, not finite, or not what they are said to be; nothing left.
    """
    cells = np.zeros(len(source.obs), dtype=bool)
    totals = np.zeros(len(source.obs), dtype=np.float64)
    seen = np.zeros(len(source.var), dtype=np.int64)
    fraction: tuple[str, str, float] | None = None
    for start, rows in source.blocks():
        refuse_values(rows, start, source)
        if fraction is None and rows.dtype.kind == "f":
            broken = np.flatnonzero(rows.data != np.rint(rows.data))
            if len(broken):
                fraction = (*_place(rows, int(broken[0]), start, source), float(rows.data[broken[0]]))
        if fraction and not normalized:
            break
        here = slice(start, start + rows.shape[0])
        keep = np.diff(rows.indptr) >= min_genes
        cells[here], totals[here] = keep, np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()
        seen += np.bincount(rows.indices if keep.all() else rows[keep].indices, minlength=len(seen))
    if fraction and not normalized:
        spare = "" if layer or "counts" not in source.layers else ", or --config.data.layer=counts to read that"
        raise InputError(
            f"{source.name} does not hold counts (gene '{fraction[1]}' in cell '{fraction[0]}' is "
            f"{fraction[2]:g}): if it is log-normalised pass --config.data.normalized=True{spare}"
        )
    if normalized and not fraction:
        raise InputError(
            f"{source.name} holds counts (whole numbers only) although it is said to be log-normalised: "
            "leave out --config.data.normalized"
        )
    if not cells.any():
        raise InputError(f"{source.name}: no cell has {min_genes} genes: lower --config.data.min_genes")
    return cells, kept_genes(seen, source.var.index, targets, min_cells_per_gene), totals


def kept_genes(
    seen: np.ndarray, names: pd.Index, targets: Collection[str], min_cells_per_gene: int
) -> Bool[np.ndarray, " genes"]:
    """Which genes stay: those in enough cells, and perturbed ones.

    Args:
        seen: the number of cells that express each gene.
        names: the genes.
        targets: genes that stay however few cells express them.
        min_cells_per_gene: fewest cells that must express a gene.

    Raises:
        InputError: no gene stays.
    """
    genes = (seen >= min_cells_per_gene) | names.isin(list(targets))
    if not genes.any():
        raise InputError(f"no gene is in {min_cells_per_gene} cells: lower --config.data.min_cells_per_gene")
    return genes


def gather(source: Source, cells: Bool[np.ndarray, " cells"], genes: Bool[np.ndarray, " genes"]) -> sp.csr_matrix:
    """The cells and genes that stay, as float32."""
    kept = []
    for start, rows in source.blocks():
        keep = cells[start : start + rows.shape[0]]
        rows = rows if keep.all() else rows[keep]
        rows = rows if genes.all() else rows[:, np.flatnonzero(genes)]
        kept.append(rows.astype(np.float32, copy=False))
    return sparse_rows(kept[0] if len(kept) == 1 else sp.vstack(kept, format="csr"))


def refuse_values(rows: sp.csr_matrix, start: int, source: Source, negative: bool = False) -> None:
    """Refuses values that are not finite or, unless allowed, negative; names the first gene and cell.

    Args:
        rows: consecutive rows of the source.
        start: the number of the first of them.
        source: where they come from, for names.
        negative: whether negative values are in order.

    Raises:
        InputError: there are such values.
    """
    checks = [(~np.isfinite(rows.data), "NaN or infinite")]
    if not negative:
        checks.append((rows.data < 0, "negative"))
    for bad, what in checks:
        if bad.any():
            cell, gene = _place(rows, int(np.flatnonzero(bad)[0]), start, source)
            raise InputError(
                f"{source.name} has {bad.sum()} {what} values, the first for gene '{gene}' in '{cell}': "
                "correct them, or give counts or log-normalised expression"
            )


def enough_cells(conditions: pd.Series, expected: Iterable[str], min_cells: int) -> None:
    """Refuses conditions with too few cells, by name.

    Args:
        conditions: the condition of each cell.
        expected: the conditions that must be there.
        min_cells: fewest cells of each; at least one is needed in any case.

    Raises:
        InputError: a condition has fewer.
    """
    counts = conditions.astype(str).value_counts().reindex(list(expected), fill_value=0)
    few = counts[counts < max(1, min_cells)].sort_index()
    if len(few):
        raise InputError(
            f"{len(few)} conditions have fewer than {max(1, min_cells)} cells: "
            f"{some(f'{c} ({n})' for c, n in few.items())}: drop them, or lower --config.data.min_cells "
            "or --config.data.min_genes"
        )


def _place(rows: sp.csr_matrix, entry: int, start: int, source: Source) -> tuple[str, str]:
    row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
    return source.obs.index[start + row], source.var.index[rows.indices[entry]]
