"""Rows of a prepared screen, read from disk when they are asked for: the matrix is never in memory as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from scbig.data.source import told_damage
from scbig.errors import InputError

__all__ = ["Rows", "Store", "check_chunks", "column_sums", "index_on_disk", "open_store"]

_SPAN = 4096  # rows read at once when chosen ones are gathered


class Rows:
    """Log-expression of cells as CSR rows, all of a matrix or some; reads what is indexed, and nothing before.

    ``rows[a:b]``, ``rows[mask]`` and ``rows[places]`` give float32 CSR matrices with sorted columns, as a matrix in
    memory would. Only slices without a step are known.

    Args:
        data: stored values of the matrix: an array, or one on disk.
        indices: their columns.
        indptr: where each row begins in both, and where the last one ends; in memory.
        n_genes: columns of the matrix.
        name: the file, as messages call it.
        index: places in the matrix of the rows meant, ascending; all where None.
    """

    def __init__(
        self,
        data: Any,
        indices: Any,
        indptr: Int[np.ndarray, " ends"],
        n_genes: int,
        name: str,
        index: Int[np.ndarray, " cells"] | None = None,
    ):
        self._data, self._indices, self._indptr, self._name, self._index = data, indices, indptr, name, index
        self.shape = (len(indptr) - 1 if index is None else len(index), n_genes)

    @classmethod
    def of(cls, x: Any) -> Rows:
        """The rows of a matrix in memory, dense or sparse; rows that are rows already stay as they are."""
        if isinstance(x, Rows):
            return x
        matrix = sp.csr_matrix(x, dtype=np.float32)
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        return cls(matrix.data, matrix.indices, matrix.indptr, matrix.shape[1], "the matrix")

    @property
    def nnz(self) -> Int[np.ndarray, " cells"]:
        """Stored values of each row."""
        each = np.diff(self._indptr)
        return each if self._index is None else each[self._index]

    @property
    def places(self) -> Int[np.ndarray, " cells"]:
        """The place of each row in the matrix; neighbours there are read together."""
        return np.arange(self.shape[0]) if self._index is None else self._index

    def chosen(self, which: Bool[np.ndarray, " cells"] | Int[np.ndarray, " chosen"]) -> Rows:
        """Some of the rows, by a mask or by ascending places; still on disk."""
        which = np.flatnonzero(which) if which.dtype == bool else np.asarray(which)
        index = which if self._index is None else self._index[which]
        if (np.diff(index) <= 0).any():
            raise ValueError("rows are chosen in ascending order, each once")
        return Rows(self._data, self._indices, self._indptr, self.shape[1], self._name, index)

    def blocks(self, size: int) -> Iterator[sp.csr_matrix]:
        """Consecutive blocks of ``size`` rows, the last one shorter."""
        for start in range(0, self.shape[0], size):
            yield self[start : start + size]

    def __len__(self) -> int:
        """How many rows."""
        return self.shape[0]

    def __getitem__(self, key: slice | np.ndarray) -> sp.csr_matrix:
        """The rows of a slice, of a mask or of any places in any order.

        Raises:
            InputError: the file is truncated or damaged there.
        """
        if isinstance(key, slice):
            start, stop, step = key.indices(self.shape[0])
            if step != 1:
                raise ValueError("rows are read one after the other: a slice has no step")
            if self._index is None:
                return self._read(start, max(start, stop))
            return self._gather(self._index[start:stop])
        key = np.asarray(key)
        key = np.flatnonzero(key) if key.dtype == bool else key
        wanted = key if self._index is None else self._index[key]
        if len(wanted) < 2 or (np.diff(wanted) > 0).all():
            return self._gather(wanted)
        found, back = np.unique(wanted, return_inverse=True)
        return self._gather(found)[back]

    def _gather(self, places: np.ndarray) -> sp.csr_matrix:
        """Rows at ascending places, span by span, so that what is read and not wanted stays small."""
        if len(places) == 0:
            return self._read(0, 0)
        parts = []
        for span in np.split(places, np.flatnonzero(np.diff(places // _SPAN)) + 1):
            block = self._read(int(span[0]), int(span[-1]) + 1)
            parts.append(block if block.shape[0] == len(span) else block[span - span[0]])
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def _read(self, start: int, stop: int) -> sp.csr_matrix:
        a, b = int(self._indptr[start]), int(self._indptr[stop])
        with told_damage(self._name):
            data = np.asarray(self._data[a:b], np.float32)
            indices = np.asarray(self._indices[a:b], np.int32)
        n_genes, what = self.shape[1], ""
        if len(data) != b - a or len(indices) != b - a:
            what = "fewer values than cells need"
        elif b > a and not 0 <= indices.min() <= indices.max() < n_genes:
            what = f"genes beyond the {n_genes:,} that there are"
        elif not np.isfinite(data).all():
            what = "values that are no numbers"
        if what:
            raise self._damaged(f"{what} in cells {start}–{stop}")
        ends = (self._indptr[start : stop + 1] - a).astype(np.int32)
        block = sp.csr_matrix((data, indices, ends), shape=(stop - start, n_genes), copy=False)
        if not block.has_sorted_indices:
            block.sort_indices()
        if not block.has_canonical_format:
            raise self._damaged(f"a gene stands twice in one of the cells {start}–{stop}")
        return block

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self._name} is truncated or damaged ({what}): fetch or write it again")


@dataclass(frozen=True)
class Store:
    """A prepared screen with its tables in memory and its matrix on disk; reads like an AnnData where that is enough.

    Attributes:
        obs: the cells' table, numbered; names of a million cells take as much memory as their latents.
        var: the genes' table.
        uns: the dictionary ``scbig`` of the file's ``uns``.
        X: log-expression, ``[cells, genes]``.
        names: reads the cells' names.
    """

    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    X: Rows
    names: Callable[[], pd.Index] = field(repr=False)

    @property
    def n_obs(self) -> int:
        """Cells."""
        return self.X.shape[0]

    @property
    def n_vars(self) -> int:
        """Genes."""
        return self.X.shape[1]

    @property
    def var_names(self) -> pd.Index:
        """Symbols of the genes."""
        return self.var.index


@contextmanager
def open_store(path: str | os.PathLike) -> Iterator[Store]:
    """Opens a prepared screen, ``.h5ad`` or ``.zarr``, without reading its matrix or its layers.

    Raises:
        InputError: the file is absent, truncated, damaged, lacks a chunk, or its X is no CSR matrix.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no prepared screen {path}: run `scbig prepare` first")
    if path.is_dir():
        import zarr

        with told_damage(str(path)):
            group = zarr.open_group(str(path), mode="r")
        yield _store(group, path)
        return
    with told_damage(str(path)):
        group = h5py.File(path, "r")
    with group:
        yield _store(group, path)


def _store(group: Any, path: Path) -> Store:
    with told_damage(str(path)):
        table, var = group["obs"], ad.io.read_elem(group["var"])
        key = table.attrs["_index"]
        columns = {str(name): ad.io.read_elem(table[name]) for name in table.attrs["column-order"]}
        obs = pd.DataFrame(columns, index=pd.RangeIndex(index_on_disk(table).shape[0]))
        uns = {"scbig": ad.io.read_elem(group["uns/scbig"])} if "uns" in group and "scbig" in group["uns"] else {}
        x = group["X"]
        kind = x.attrs.get("encoding-type")
        if kind != "csr_matrix":
            raise InputError(f"{path}: X is stored as {kind}, not in rows (csr_matrix): run `scbig prepare` again")
        shape = tuple(int(n) for n in x.attrs["shape"])
        data, indices = x["data"], x["indices"]
        if path.is_dir():
            for array in (data, indices, x["indptr"]):
                check_chunks(array, path)
        indptr = np.asarray(x["indptr"][...], np.int64)
    whole = len(indptr) == shape[0] + 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
    if not whole or not indptr[-1] == data.shape[0] == indices.shape[0] or shape != (len(obs), len(var)):
        raise InputError(f"{path} is truncated or damaged (its parts do not fit together): fetch or write it again")

    def names() -> pd.Index:
        with told_damage(str(path)):
            return pd.Index(ad.io.read_elem(table[key]), name=None if key == "_index" else key)

    return Store(obs, var, uns, Rows(data, indices, indptr, shape[1], str(path)), names)


def index_on_disk(table: Any) -> Any:
    """The array of the row names of a table on disk; what pandas 3 holds as text is a group of values and a mask."""
    stored = table[table.attrs["_index"]]
    return stored["values"] if hasattr(stored, "keys") else stored


def check_chunks(array: Any, path: Path) -> None:
    """Refuses a zarr array that lacks a chunk (a shard, where it has them): zarr itself would read zeros there.

    Args:
        array: the array, of the store at ``path``; every chunk was written, also those of nothing but zeros.
        path: the store's folder.

    Raises:
        InputError: naming the first file that is not there.
    """
    sizes = array.shards or array.chunks
    grid = [range(-(-n // size)) for n, size in zip(array.shape, sizes, strict=True)]
    for place in product(*grid):
        file = Path(path, array.path, array.metadata.encode_chunk_key(place))
        if not file.exists():
            raise InputError(f"{path} lacks a part of its contents: {file} is gone; fetch or write it again")


def column_sums(rows: Rows, size: int = 4096) -> Float[np.ndarray, " genes"]:
    """Sum of each gene over the cells, float64, block by block."""
    total = np.zeros(rows.shape[1])
    for block in rows.blocks(size):
        total += np.bincount(block.indices, weights=block.data, minlength=len(total))
    return total
