"""Going through the values of a screen once to check them, and once more to take what is kept."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.data.conditions import as_text
from scbig.data.source import Source, sparse_rows
from scbig.errors import InputError, some

__all__ = ["Examined", "enough_cells", "examine", "gather", "kept_genes", "kept_rows", "refuse_values", "scan"]


@dataclass
class Examined:
    """What one block of rows holds.

    Attributes:
        keep: which of its cells express enough genes.
        totals: the total of each of its cells.
        seen: in how many of the cells that stay each gene is expressed.
        filled: values other than zero in the cells that stay.
        bad: of each kind of wrong value how many there are and where the first is (row of the file, column).
        fraction: where the first value is that is not whole, and the value.
    """

    keep: Bool[np.ndarray, " rows"]
    totals: Float[np.ndarray, " rows"]
    seen: Int[np.ndarray, " genes"]
    filled: int
    bad: dict[str, tuple[int, int, int]]
    fraction: tuple[int, int, float] | None


def examine(rows: sp.csr_matrix, start: int, min_genes: int = 0) -> Examined:
    """Looks at every value of a block.

    Args:
        rows: consecutive rows without stored zeros.
        start: the number of the first of them.
        min_genes: fewest genes that a cell must express to stay.
    """
    fraction = None
    # Values that are not finite are refused before fractions are looked for.
    bad = _wrong_values(rows, start, negative=False)
    if rows.dtype.kind == "f" and not bad:
        broken = np.flatnonzero(rows.data != np.rint(rows.data))
        if len(broken):
            fraction = (*_place(rows, int(broken[0]), start), float(rows.data[broken[0]]))
    keep = np.diff(rows.indptr) >= min_genes
    kept = rows.indices if keep.all() else rows[keep].indices
    totals = np.zeros(len(keep)) if bad else np.asarray(rows.sum(axis=1, dtype=np.float64)).ravel()
    return Examined(keep, totals, np.bincount(kept, minlength=rows.shape[1]), len(kept), bad, fraction)


def scan(
    source: Source,
    *,
    normalized: bool,
    layer: str | None = None,
    targets: Collection[str] = (),
    min_genes: int = 0,
    min_cells_per_gene: int = 0,
    examined: Iterable[Examined] | None = None,
) -> tuple[Bool[np.ndarray, " cells"], Bool[np.ndarray, " genes"], Float[np.ndarray, " cells"]]:
    """Checks every value and says what stays.

    Args:
        source: the cells.
        normalized: whether they are said to be log-normalised; else they must be counts.
        layer: the layer that was asked for, for the message.
        targets: genes that stay however few cells express them.
        min_genes: fewest genes that a cell must express to stay.
        min_cells_per_gene: fewest of the cells that stay in which a gene must be expressed to stay.
        examined: what ``examine`` found in consecutive blocks, where others have done it; the source's blocks
            are examined here when not given.

    Returns:
        Which cells stay, which genes stay, and the total of every cell over all genes.

    Raises:
        InputError: values that are negative, not finite, or not what they are said to be; nothing left.
    """
    if examined is None:
        examined = (examine(rows, start, min_genes) for start, rows in source.blocks())
    cells, totals, start = np.zeros(len(source.obs), dtype=bool), np.zeros(len(source.obs)), 0
    seen = np.zeros(len(source.var), dtype=np.int64)
    bad: dict[str, tuple[int, int, int]] = {}
    fraction = None
    for block in examined:
        here = slice(start, start + len(block.keep))
        cells[here], totals[here], start = block.keep, block.totals, here.stop
        seen += block.seen
        for kind, (count, *first) in block.bad.items():
            bad[kind] = (bad[kind][0] + count, *bad[kind][1:]) if kind in bad else (count, *first)
        fraction = fraction or block.fraction
    _refuse(bad, source)
    if fraction and not normalized:
        cell, gene = source.obs.index[fraction[0]], source.var.index[fraction[1]]
        spare = "" if layer or "counts" not in source.layers else ", or --config.data.layer=counts to read that"
        raise InputError(
            f"{source.name} does not hold counts (gene '{gene}' in cell '{cell}' is "
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
    kept = [kept_rows(rows, cells[start : start + rows.shape[0]], genes) for start, rows in source.blocks()]
    return sparse_rows(kept[0] if len(kept) == 1 else sp.vstack(kept, format="csr"))


def kept_rows(rows: sp.csr_matrix, keep: Bool[np.ndarray, " rows"], genes: Bool[np.ndarray, " genes"]) -> sp.csr_matrix:
    """The cells and genes of a block that stay, as float32."""
    rows = rows if keep.all() else rows[keep]
    rows = rows if genes.all() else rows[:, np.flatnonzero(genes)]
    return rows.astype(np.float32, copy=False)


def refuse_values(rows: sp.csr_matrix, source: Source) -> None:
    """Refuses values that are not finite; names the first gene and cell.

    Args:
        rows: all rows of the source.
        source: where they come from, for names.

    Raises:
        InputError: there are such values.
    """
    _refuse(_wrong_values(rows, 0, negative=True), source)


def _wrong_values(rows: sp.csr_matrix, start: int, negative: bool) -> dict[str, tuple[int, int, int]]:
    """How many there are of each kind, and row and column of the first."""
    checks = [("NaN or infinite", ~np.isfinite(rows.data))]
    if not negative:
        checks.append(("negative", rows.data < 0))
    return {
        kind: (int(wrong.sum()), *_place(rows, int(wrong.argmax()), start)) for kind, wrong in checks if wrong.any()
    }


def _refuse(bad: dict[str, tuple[int, int, int]], source: Source) -> None:
    for kind in ("NaN or infinite", "negative"):
        if kind in bad:
            count, row, column = bad[kind]
            raise InputError(
                f"{source.name} has {count} {kind} values, the first for gene '{source.var.index[column]}' in "
                f"'{source.obs.index[row]}': correct them, or give counts or log-normalised expression"
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
    counts = as_text(conditions).value_counts().reindex(list(expected), fill_value=0)
    few = counts[counts < max(1, min_cells)].sort_index()
    if len(few):
        raise InputError(
            f"{len(few)} conditions have fewer than {max(1, min_cells)} cells: "
            f"{some(f'{c} ({n})' for c, n in few.items())}: drop them, or lower --config.data.min_cells "
            "or --config.data.min_genes"
        )


def _place(rows: sp.csr_matrix, entry: int, start: int) -> tuple[int, int]:
    row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
    return start + row, int(rows.indices[entry])
