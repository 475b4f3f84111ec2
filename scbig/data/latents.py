"""The latents of all cells on disk: an AnnData in zarr format 3, its matrix in shards, written block by block."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import zarr
from jaxtyping import Float

from scbig.data.source import told_damage
from scbig.data.store import check_chunks
from scbig.data.text import portable
from scbig.files import atomic

__all__ = ["read_latents", "write_latents"]

_CHUNK, _SHARD = 8192, 65536  # rows
_ALIGNED = 64  # bytes; JAX uses memory that begins at a multiple of it in place


def write_latents(
    path: str | os.PathLike, obs: pd.DataFrame, blocks: Iterable[Float[np.ndarray, "block latent"]], latent: int
) -> None:
    """Writes an AnnData whose X comes in consecutive blocks; whole or not at all.

    Args:
        path: the folder, ``.zarr``.
        obs: the cells' table.
        blocks: float32 latents of consecutive cells, all cells in the end.
        latent: numbers per cell.

    Raises:
        ValueError: the blocks do not add up to the cells.
    """
    n_cells = len(obs)
    # A shard holds whole chunks, and a small screen gets one of each.
    chunk = min(_CHUNK, max(1, n_cells))
    with atomic(path) as temporary:
        group = zarr.open_group(str(temporary), mode="w", zarr_format=3)
        # Said outright: the default is about to change.
        with portable(), ad.settings.override(auto_shard_zarr_v3=False):
            ad.io.write_elem(group, "/", ad.AnnData(obs=obs, var=_dims(latent)))
        x = group.create_array(
            "X", shape=(n_cells, latent), dtype="float32", chunks=(chunk, latent),
            shards=(chunk * min(_SHARD // _CHUNK, -(-n_cells // chunk)), latent), overwrite=True,
            # So that a chunk which is not there is one that was lost.
            config={"write_empty_chunks": True},
        )  # fmt: skip
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        shard, begun, done = x.shards[0], [], 0
        for block in blocks:
            begun.append(block)
            # Whole shards only: a part of one would be read and written again.
            while sum(map(len, begun)) >= shard:
                rows = np.concatenate(begun)
                x[done : done + shard], begun, done = rows[:shard], [rows[shard:]], done + shard
        rest = np.concatenate(begun) if begun else np.empty((0, latent), np.float32)
        if done + len(rest) != n_cells:
            raise ValueError(f"latents of {done + len(rest)} cells for a table of {n_cells}")
        if len(rest):
            x[done:] = rest


def _dims(latent: int) -> pd.DataFrame:
    return pd.DataFrame(index=[str(number) for number in range(latent)])


def read_latents(path: str | os.PathLike) -> Float[np.ndarray, "cells latent"]:
    """The latents, in memory that a CPU device can use without a copy.

    Raises:
        InputError: the folder is damaged, or a shard of it is gone.
    """
    path = Path(path)
    with told_damage(str(path)):
        x = zarr.open_group(str(path), mode="r")["X"]
        check_chunks(x, path)
        n_bytes = int(np.prod(x.shape)) * 4
        raw = np.empty(n_bytes + _ALIGNED, np.uint8)
        begin = -raw.ctypes.data % _ALIGNED
        out = raw[begin : begin + n_bytes].view(np.float32).reshape(x.shape)
        for start in range(0, len(out), _SHARD):
            out[start : start + _SHARD] = x[start : start + _SHARD]
    return out
