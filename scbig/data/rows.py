"""Rows of a matrix on disk, read where they are needed and written block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbig.data.source import sparse_rows, told_damage
from scbig.data.text import portable
from scbig.errors import InputError

__all__ = ["RowWriter", "Stored"]

_ENTRIES = 1 << 21  # stored values of a block: 16 MiB as CSR
_DENSE = 1 << 23  # values of a block of a dense matrix: 32 MiB as float32
_CHUNK = 1 << 17  # values of a chunk on disk: half a MiB, so that a block of rows reads little beside its own


@dataclass(frozen=True)
class Stored:
    """A matrix in a file; small, so that it can be sent to workers.

    Attributes:
        path: the file, absolute.
        name: the file, as messages call it.
        key: ``X``, or ``layers/NAME``.
        form: ``csr_matrix``, ``csc_matrix`` or ``array``.
        shape: cells, genes.
        filled: stored values; of an array, those of all cells if the others were filled like some in its middle.
    """

    path: str
    name: str
    key: str
    form: str
    shape: tuple[int, int]
    filled: int

    @classmethod
    def find(cls, path: str | os.PathLike, layer: str | None) -> Stored | None:
        """Looks up a matrix without reading it; None where there is no such matrix or no AnnData."""
        name, key = str(path), f"layers/{layer}" if layer else "X"
        with _opened(Path(path).resolve(), name) as store, told_damage(name):
            if key not in store:
                return None
            item = store[key]
            if hasattr(item, "shape"):
                middle = item.shape[0] // 2
                rows = np.asarray(item[middle : middle + 256])
                filled = int(np.count_nonzero(rows) / max(1, len(rows)) * item.shape[0])
                form, shape = "array", item.shape
            else:
                form, shape = str(item.attrs.get("encoding-type")), item.attrs["shape"]
                filled = int(item["data"].shape[0])
        return cls(str(Path(path).resolve()), name, key, form, (int(shape[0]), int(shape[1])), filled)

    def spans(self) -> Iterator[tuple[int, int]]:
        """First row, and the one after the last, of consecutive blocks of bounded size."""
        n_cells, n_genes = self.shape
        rows = _DENSE // max(1, n_genes) if self.form == "array" else int(_ENTRIES / max(1.0, self.filled / n_cells))
        rows = min(max(64, rows), 1 << 15)
        for start in range(0, n_cells, rows):
            yield start, min(start + rows, n_cells)

    def read(self, start: int, stop: int) -> sp.csr_matrix:
        """Some rows as CSR with sorted columns and no stored zeros.

        Raises:
            InputError: the file is gone, truncated or damaged.
        """
        with _opened(Path(self.path), self.name) as store, told_damage(self.name):
            item = store[self.key]
            if self.form == "array":
                return sparse_rows(item[start:stop])
            ends = np.asarray(item["indptr"][start : stop + 1]).astype(np.int64)
            parts = (item["data"][ends[0] : ends[-1]], item["indices"][ends[0] : ends[-1]], ends - ends[0])
            if len(parts[0]) != ends[-1] - ends[0] or len(parts[1]) != len(parts[0]):
                raise OSError(f"rows {start} to {stop} are not all there")
            return sparse_rows(sp.csr_matrix(parts, shape=(stop - start, self.shape[1])))


class _opened:
    """An HDF5 file or zarr group for reading, closed in the end."""

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name

    def __enter__(self) -> Any:
        if not self._path.exists():
            raise InputError(f"there is no file {self._name}: pass --config.data.path=FILE.h5ad or FILE.zarr")
        with told_damage(self._name):
            if self._path.is_dir():
                import zarr

                self._store = zarr.open_group(str(self._path), mode="r")
            else:
                self._store = h5py.File(self._path, "r")
        return self._store

    def __exit__(self, *_: object) -> None:
        if isinstance(self._store, h5py.File):
            self._store.close()


class RowWriter:
    """Writes an ``.h5ad`` of sparse matrices block by block, in memory that does not depend on their number.

    Blocks of consecutive rows read back quickly: the chunks on disk are half a MiB of values. A context manager;
    ``finish`` makes the file whole.

    Args:
        path: the file, new (give that of ``scbig.files.atomic``).
        n_genes: columns.
        most: the most values that a matrix can come to hold; decides how wide the numbers of their places are.
        keys: the matrices, such as ``("X", "layers/counts")``.
        dtype: of their values.
    """

    def __init__(
        self, path: str | os.PathLike, n_genes: int, most: int, keys: tuple[str, ...] = ("X",), dtype: str = "float32"
    ):
        self._path, self._n_genes, self._keys, self._dtype = path, n_genes, keys, np.dtype(dtype)
        self._ends = np.dtype("int32" if most < np.iinfo(np.int32).max else "int64")
        self._on_disk = {"compression": "lzf", "chunks": (_CHUNK,)}
        self._n_cells = 0

    def __enter__(self) -> RowWriter:
        self._file = h5py.File(self._path, "w")
        self._file.attrs["encoding-type"], self._file.attrs["encoding-version"] = "anndata", "0.1.0"
        for name in ("layers", "obsm", "obsp", "varm", "varp"):
            ad.io.write_elem(self._file, name, {})
        for key in self._keys:
            empty = sp.csr_matrix((0, self._n_genes), dtype=self._dtype)
            folder, _, name = f"/{key}".rpartition("/")
            options = self._on_disk | {"indptr_dtype": self._ends}
            ad.io.write_elem(self._file[folder or "/"], name, empty, dataset_kwargs=options)
        return self

    def append(self, *blocks: sp.csr_matrix) -> None:
        """Adds rows to every matrix, in the order of ``keys``.

        Args:
            blocks: for every matrix the same number of rows × ``n_genes``.
        """
        for key, block in zip(self._keys, blocks, strict=True):
            ad.io.sparse_dataset(self._file[key]).append(block)
        self._n_cells += blocks[0].shape[0]

    def finish(self, obs: pd.DataFrame, var: pd.DataFrame, uns: dict[str, Any]) -> ad.AnnData:
        """Adds the tables, one row of ``obs`` for each row that was appended, and returns them."""
        if (self._n_cells, self._n_genes) != (len(obs), len(var)):
            raise ValueError(f"{self._n_cells} × {self._n_genes} values for {len(obs)} cells × {len(var)} genes")
        tables = ad.AnnData(obs=obs, var=var, uns=uns)
        tables.strings_to_categoricals()
        with portable():
            for name in ("obs", "var", "uns"):
                table = getattr(tables, name)
                table = dict(table) if name == "uns" else table
                ad.io.write_elem(self._file, name, table, dataset_kwargs={"compression": "lzf"})
        return tables

    def __exit__(self, *_: object) -> None:
        self._file.close()
