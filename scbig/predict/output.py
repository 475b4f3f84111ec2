"""Where sampled cells go: an AnnData in memory, or a file written chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Float

from scbig.console import Progress
from scbig.data.text import portable
from scbig.errors import InputError
from scbig.files import atomic
from scbig.predict.tiles import Chunk

__all__ = ["Moments", "Population", "collect", "write"]

_BUFFER = 32 << 20  # bytes of expression kept before they are written
_STORED = 1 << 20  # bytes of expression compressed together
_NAMES = 1 << 16  # cell names in memory at once


@dataclass(frozen=True)
class Population:
    """Cells about to be sampled, and all that is known of them before.

    Attributes:
        obs: their columns, without their names.
        names: maps ``(start, stop)`` to the names of those cells.
        var: the genes.
        about: ``uns["scbig"]``.
        n_latent: length of a latent.
        chunks: samples them, in the order of ``obs``.
        varm: what is known of conditions by gene once all chunks were made.
    """

    obs: pd.DataFrame
    names: Callable[[int, int], list[str]]
    var: pd.DataFrame
    about: dict[str, Any]
    n_latent: int
    chunks: Callable[[], Iterator[Chunk]]
    varm: Callable[[], dict[str, pd.DataFrame]]


class Moments:
    """Mean and standard deviation of the cells of each condition, from chunks of them.

    Args:
        n: number of conditions.
        n_genes: number of genes.
    """

    def __init__(self, n: int, n_genes: int):
        self._count = np.zeros(n, np.int64)
        self.mean = np.zeros((n, n_genes), np.float32)
        self._squares = np.zeros((n, n_genes), np.float32)

    def add(self, condition: int, x: Float[np.ndarray, "cells genes"]) -> None:
        """More cells of one condition."""
        old, new = self._count[condition], len(x)
        if not new:
            return
        mean = x.mean(axis=0)
        away = x - mean
        squares = np.einsum("cg,cg->g", away, away)
        # Chan's update: no large sums whose difference would be taken.
        gap = mean - self.mean[condition]
        self._count[condition] = old + new
        self.mean[condition] += gap * (new / (old + new))
        self._squares[condition] += squares + gap**2 * (old * new / (old + new))

    def spread(self) -> Float[np.ndarray, "conditions genes"]:
        """Standard deviation over the cells of each condition."""
        return np.sqrt(self._squares / np.maximum(self._count, 1).astype(np.float32)[:, None])


def collect(population: Population) -> ad.AnnData:
    """All cells in memory."""
    n, genes = len(population.obs), len(population.var)
    x, latent = np.empty((n, genes), np.float32), np.empty((n, population.n_latent), np.float32)
    done = 0
    for chunk in population.chunks():
        stop = done + len(chunk.x)
        x[done:stop], latent[done:stop] = chunk.x, chunk.latent
        done = stop
    obs = population.obs.set_axis(pd.Index(population.names(0, n)), axis=0)
    result = ad.AnnData(x, obs=obs, var=population.var.copy())
    result.obsm["X_latent"] = latent
    for name, table in population.varm().items():
        result.varm[name] = table
    result.uns["scbig"] = dict(population.about)
    return result


def write(population: Population, path: str | os.PathLike) -> None:
    """All cells to a file, whole or not at all; memory does not depend on their number.

    Args:
        population: the cells.
        path: ends in ``.h5ad`` or in ``.zarr`` (format 3, sharded).

    Raises:
        InputError: for another ending.
    """
    if Path(path).suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{path} must end in .h5ad or .zarr")
    # AnnData's default for shards is about to change; none for the small arrays, said outright.
    with atomic(path) as temporary, ad.settings.override(auto_shard_zarr_v3=False), portable():
        with _opened(temporary) as root:
            _fill(root, population)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The root group of a new file of the kind that the name says."""
    if path.suffix == ".zarr":
        yield zarr.open_group(str(path), mode="w", zarr_format=3)
        return
    with h5py.File(path, "w") as file:
        yield file


def _fill(root: Any, population: Population) -> None:
    n, genes = len(population.obs), len(population.var)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name in ("layers", "obsm", "obsp", "varp"):
        ad.io.write_elem(root, name, {})
    ad.io.write_elem(root, "var", population.var)
    ad.io.write_elem(root, "uns", {"scbig": dict(population.about)})
    _write_obs(root, population)
    # Whole multiples of what is compressed together, so that nothing is read back to be written again.
    stored = max(1, min(n, _STORED // (4 * genes)))
    held = stored * max(1, min(-(-n // stored), _BUFFER // (4 * genes * stored)))
    x = _Rows(_dense(root, "X", (n, genes), stored, held), held)
    latent = _Rows(_dense(root["obsm"], "X_latent", (n, population.n_latent), held, held), held)
    with Progress("sample", n, unit="cells") as progress:
        for chunk in population.chunks():
            x.append(chunk.x)
            latent.append(chunk.latent)
            progress.advance(len(chunk.x))
    x.flush()
    latent.flush()
    ad.io.write_elem(root, "varm", population.varm())


def _write_obs(root: Any, population: Population) -> None:
    """The table of cells as AnnData stores it; their names by parts, since a million strings are a lot of memory."""
    n = len(population.obs)
    obs = root.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "_index"})
    obs.attrs["column-order"] = list(population.obs.columns)
    for name, column in population.obs.items():
        ad.io.write_elem(
            obs, name, column.array if isinstance(column.dtype, pd.CategoricalDtype) else column.to_numpy()
        )
    if isinstance(root, h5py.Group):
        index = obs.create_dataset("_index", (n,), h5py.string_dtype(), chunks=(min(n, _NAMES),), compression="lzf")
    else:
        index = obs.create_array("_index", shape=(n,), chunks=(min(n, _NAMES),), dtype=str)
    index.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    for start in range(0, n, _NAMES):
        stop = min(start + _NAMES, n)
        index[start:stop] = np.array(population.names(start, stop), object)


def _dense(group: Any, name: str, shape: tuple[int, int], stored: int, held: int) -> Any:
    """An empty matrix of float32 in chunks of ``stored`` rows; where there are shards, of ``held`` rows."""
    if isinstance(group, h5py.Group):
        chunks = (min(stored, shape[0]), shape[1])
        made = group.create_dataset(name, shape, np.float32, chunks=chunks, compression="lzf")
    else:
        chunks = {"chunks": (stored, shape[1]), "shards": (held, shape[1])}
        made = group.create_array(name, shape=shape, dtype=np.float32, **chunks)
    made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    return made


class _Rows:
    """Appends rows to an array, ``held`` at a time."""

    def __init__(self, array: Any, held: int):
        self._array, self._held = array, np.empty((held, array.shape[1]), np.float32)
        self._filled = self._written = 0

    def append(self, rows: np.ndarray) -> None:
        while len(rows):
            part = rows[: len(self._held) - self._filled]
            self._held[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rows = rows[len(part) :]
            if self._filled == len(self._held):
                self.flush()

    def flush(self) -> None:
        if self._filled:
            stop = self._written + self._filled
            self._array[self._written : stop] = self._held[: self._filled]
            self._written, self._filled = stop, 0
