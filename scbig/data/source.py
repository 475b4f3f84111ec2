"""An AnnData file, or one in memory, as tables and blocks of rows: nothing larger than needed is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbig.data.text import plain_text
from scbig.errors import InputError, some

__all__ = ["LARGE", "Source", "open_source", "sparse_rows"]

LARGE = 2 << 30
"""Files above this many bytes on disk are streamed."""

_BLOCK = 1 << 25  # entries of a dense block: 128 MiB as float32


@dataclass
class Source:
    """Where cells come from.

    Attributes:
        name: the file, as messages call it.
        obs: the cells' table.
        var: the genes' table.
        uns: single values (text and numbers) and the dictionary ``scbig`` of the file's ``uns``.
        layers: names of the layers.
        matrix: the counts or expression, as an array, a sparse matrix or something on disk that gives rows.
        streamed: whether rows are read from disk in blocks.
    """

    name: str
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    layers: tuple[str, ...]
    matrix: Any
    streamed: bool
    _held: sp.csr_matrix | None = field(default=None, repr=False)

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """The first row's number and the rows of consecutive blocks, as CSR without stored zeros."""
        n_cells, n_genes = len(self.obs), len(self.var)
        if not self.streamed:
            if self._held is None:
                with told_damage(self.name):
                    self._held = sparse_rows(self.matrix[...] if _on_disk(self.matrix) else self.matrix)
                self.matrix = None
            yield 0, self._held
            return
        rows = max(64, _BLOCK // max(1, n_genes))
        for start in range(0, n_cells, rows):
            with told_damage(self.name):
                block = sparse_rows(self.matrix[start : start + rows])
            yield start, block


@contextmanager
def open_source(
    path: str | os.PathLike | ad.AnnData, layer: str | None = None, backed: bool | Literal["auto"] = "auto"
) -> Iterator[Source]:
    """Opens an AnnData for reading.

    Args:
        path: an ``.h5ad`` or ``.zarr``, or an AnnData in memory.
        layer: the layer to take; X when None.
        backed: whether to read rows in blocks; ``"auto"`` does so above ``LARGE``.

    Raises:
        InputError: the file is absent, truncated, damaged or no AnnData, or has no such layer.
    """
    if isinstance(path, ad.AnnData):
        matrix = path.X if layer is None else path.layers.get(layer)
        layers = tuple(name for name in path.layers if name is not None)  # from anndata 0.13, X is the layer None
        yield _source("the AnnData", path.obs, path.var, dict(path.uns), layers, matrix, layer, False)
        return
    path = Path(path)
    if not path.exists():
        raise InputError(f"there is no file {path}: pass --config.data.path=FILE.h5ad or FILE.zarr")
    if path.is_dir():
        import zarr

        with told_damage(str(path)):
            store = zarr.open_group(str(path), mode="r")
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    elif path.suffix in (".h5ad", ".h5"):
        with told_damage(str(path)):
            store = h5py.File(path, "r")
        size = path.stat().st_size
    else:
        raise InputError(f"{path} is neither .h5ad nor .zarr: convert it to one of them")
    try:
        yield _from_store(store, str(path), layer, size > LARGE if backed == "auto" else backed)
    finally:
        if isinstance(store, h5py.File):
            store.close()


def _from_store(store: Any, name: str, layer: str | None, streamed: bool) -> Source:
    with told_damage(name):
        if "obs" not in store or "var" not in store:
            raise InputError(f"{name} holds no AnnData (obs and var are absent): convert it first")
        obs, var = ad.io.read_elem(store["obs"]), ad.io.read_elem(store["var"])
        layers = tuple(store["layers"].keys()) if "layers" in store else ()
        uns = {}
        for key in store["uns"].keys() if "uns" in store else ():
            item = store["uns"][key]
            if key == "scbig" or (hasattr(item, "shape") and item.shape == ()):
                uns[key] = ad.io.read_elem(item)
        group = store["X"] if layer is None and "X" in store else None
        if layer in layers:
            group = store["layers"][layer]
        if group is None:
            matrix = None
        elif hasattr(group, "shape"):
            matrix = group
        elif group.attrs.get("encoding-type") == "csr_matrix" and streamed:
            matrix = ad.io.sparse_dataset(group)
        else:
            # Rows of a CSC matrix cannot be read one by one.
            matrix, streamed = ad.io.read_elem(group), False
    if not isinstance(obs, pd.DataFrame) or not isinstance(var, pd.DataFrame):
        raise InputError(f"{name} is in a format of anndata before 0.7: open it with anndata and write it again")
    return _source(name, obs, var, uns, layers, matrix, layer, streamed)


def _source(
    name: str,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: dict[str, Any],
    layers: tuple[str, ...],
    matrix: Any,
    layer: str | None,
    streamed: bool,
) -> Source:
    if matrix is None:
        what = f"has no layer '{layer}' (layers: {some(layers) or 'none'})" if layer else "has no X"
        raise InputError(f"{name} {what}: pass --config.data.layer=NAME")
    if tuple(matrix.shape) != (len(obs), len(var)):
        raise InputError(f"{name} is damaged: its matrix is {matrix.shape} for {len(obs)} cells × {len(var)} genes")
    kept = {k: v for k, v in uns.items() if k == "scbig" or isinstance(v, str | int | float | bool | np.generic)}
    return Source(name, plain_text(obs), plain_text(var), kept, layers, matrix, streamed)


def sparse_rows(matrix: Any) -> sp.csr_matrix:
    """Any array or sparse matrix as CSR with sorted columns and no stored zeros; the input stays."""
    if isinstance(matrix, sp.csr_matrix):
        rows = matrix
    elif sp.issparse(matrix):
        rows = sp.csr_matrix(matrix)
    else:
        rows = sp.csr_matrix(np.asarray(matrix))
    if not rows.has_sorted_indices or (rows.data == 0).any():
        rows = rows.copy() if rows is matrix or np.shares_memory(rows.data, getattr(matrix, "data", 0)) else rows
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def _on_disk(matrix: Any) -> bool:
    return not isinstance(matrix, np.ndarray) and not sp.issparse(matrix)


@contextmanager
def told_damage(name: str) -> Iterator[None]:
    """Says which file is damaged instead of how a library failed on it."""
    try:
        yield
    except InputError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name} is truncated or damaged ({reason}): fetch or write it again") from error
