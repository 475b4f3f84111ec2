"""Preparation of screens larger than memory, by blocks of rows on Dask workers.

The same functions decide and compute as in ``preprocess``; here they see one block at a time, so the result is that
of ``preprocess.prepare`` to the rounding of sums. The file is gone through up to four times: to check every value, for
controls' means where a knockdown is asked for, for the genes' moments, and to write. Only tables, one row per cell, are
held. scanpy can also work on Dask arrays; its moments are float32, which can choose other genes at the margin, and it
scales to totals of the genes at hand only, so it serves the tests as a reference.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from ml_collections import ConfigDict

from scbig import workers
from scbig.data.blocks import Knockdown, dispersions, log_scaled, moments
from scbig.data.conditions import as_text, genes_of
from scbig.data.preprocess import choose_genes, depth, moved_cells
from scbig.data.read import interpret, is_canonical
from scbig.data.rows import RowWriter, Stored
from scbig.data.scan import Examined, enough_cells, examine, kept_genes, kept_rows, scan
from scbig.data.source import Source, open_source
from scbig.data.splits import Split
from scbig.data.wishes import Wishes, reading, split_of
from scbig.errors import InputError

__all__ = ["backend", "prepare"]


def backend(config: ConfigDict) -> tuple[str, float]:
    """How to prepare the screen of a configuration.

    Returns:
        ``"memory"`` or ``"dask"``, and the gigabytes that its matrices would take in memory (0 where nobody asks).

    Raises:
        InputError: a setting that is not one, or a file that cannot be read by rows although it must.
    """
    wanted = config.data.backend
    if wanted not in ("auto", "memory", "dask"):
        raise InputError(f"--config.data.backend={wanted} is none of auto, memory and dask")
    if wanted == "memory":
        return "memory", 0.0
    path = Path(config.data.path)
    stored = Stored.find(path, config.data.layer or None) if path.is_dir() or path.suffix in (".h5ad", ".h5") else None
    if stored is None:
        # Whatever is wrong with the file, reading it into memory says so.
        return "memory", 0.0
    # float32 values and int32 places, and counts beside the normalised values.
    size = stored.filled * (8 if config.data.normalized else 12) / 1e9
    if wanted == "auto" and size <= config.data.memory_gb and workers.current() is None:
        return "memory", size
    if stored.form not in ("csr_matrix", "array"):
        raise InputError(
            f"{stored.name} holds {stored.key} by columns ({stored.form}), which cannot be read by rows: write it as CSR, "
            "or pass --config.data.backend=memory"
        )
    return "dask", size


def prepare(config: ConfigDict, out: str | os.PathLike) -> tuple[ad.AnnData, Split]:
    """Reads, checks, normalises and splits a screen and chooses its genes, block by block, into a file.

    Done on the workers of the current Dask client, or of a local cluster where there is none.

    Args:
        config: as for ``preprocess.prepare``.
        out: the ``.h5ad`` to write; give the temporary path of ``scbig.files.atomic``.

    Returns:
        The tables of the prepared screen (``obs``, ``var``, ``uns``; no matrix), and the split.

    Raises:
        InputError: anything wrong with the file, the settings or their match, as in memory; lost workers.
    """
    wish = Wishes.of(None, config.data)
    path = Path(wish.source)
    with workers.local() as client:
        workers.refuse_unseen(client, path.resolve())
        with open_source(path, _given_layer(config), backed=True) as source:
            _give_back()
            screen = _look(source, wish, config, client)
        del source  # and the tables of all its cells
        _give_back()
        _normalize(screen, wish)
        conditions = as_text(screen.obs["condition"]).unique()
        if wish.knockdown:
            _filter(screen, wish, client)
        enough_cells(screen.obs["condition"], conditions, wish.min_cells)
        split = split_of(screen.obs, config)
        train = split.assign(screen.obs) == "train"
        screen.var, chosen, told = choose_genes(
            screen.obs, screen.var, train, wish.n_top_genes, wish.allow_missing_targets, wish.gene_targets,
            lambda: _dispersions(screen, train, client),
        )  # fmt: skip
        screen.marks |= told | {"split": split.name, "split_sha256": split.sha256}
        tables = _write(screen, chosen, client, out)
    return tables, split


def _give_back() -> None:
    """Hands memory that is free back to the system, where the C library keeps it: names and blocks leave many pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _given_layer(config: ConfigDict) -> str | None:
    return config.data.layer or None


@dataclass
class _Screen:
    """A screen of which the tables are held and the matrix is on disk.

    Attributes:
        stored: the matrix of counts, or of expression that was given.
        cells: which rows of it stay.
        genes: which columns of it stay.
        obs: the table of the cells that stay.
        var: the table of the genes that stay.
        uns: the rest, without marks.
        marks: ``uns["scbig"]``.
        most: an upper bound of the values that stay.
        scale: factor of every cell that stays; None where X is expression.
    """

    stored: Stored
    cells: np.ndarray
    genes: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    marks: dict[str, Any]
    most: int
    scale: np.ndarray | None = None

    @property
    def all_uns(self) -> dict[str, Any]:
        return self.uns | {"scbig": self.marks}

    def calls(self, of_block: Callable[[slice], tuple]) -> Iterator[tuple]:
        """For every block: what ``_kept`` needs to read it, and ``of_block`` of the cells that stay in it."""
        first = 0
        for start, stop in self.stored.spans():
            keep = self.cells[start:stop]
            here = slice(first, first + int(keep.sum()))
            first = here.stop
            scale = None if self.scale is None else self.scale[here]
            if here.stop > here.start:
                yield self.stored, start, stop, keep, self.genes, scale, *of_block(here)


def _look(source: Source, wish: Wishes, config: ConfigDict, client: Any) -> _Screen:
    """The first time through: names, columns, every value, and which cells and genes stay."""
    if is_canonical(source):
        return _look_canonical(source, wish, client)
    told = interpret(source, **reading(config.data), min_cells=wish.min_cells, **wish.floors)
    _give_back()
    stored = _stored(source, _given_layer(config))
    filled = [0]
    examined = _examined(stored, wish, client, filled)
    cells, genes, totals = scan(source, **told.limits, examined=examined)
    obs, var, uns = told.tables(cells, genes, totals)
    wish.refuse_prepared(uns["scbig"])
    return _Screen(stored, cells, genes, obs, var, uns, dict(uns["scbig"]), filled[0])


def _look_canonical(source: Source, wish: Wishes, client: Any) -> _Screen:
    """The same for what ``read`` wrote: its values were checked, only the limits may be new."""
    marks = dict(source.uns["scbig"])
    wish.refuse_prepared(marks)
    counts = marks["normalization"] != "given"
    if counts and "counts" not in source.layers:
        raise InputError("normalize needs layers['counts'], which is not there: read the file with scbig.data.read")
    stored = _stored(source, "counts" if counts else None)
    obs, var, filled = source.obs, source.var, [0]
    examined = list(_examined(stored, wish, client, filled))
    cells = np.concatenate([block.keep for block in examined])
    names = as_text(obs["condition"])
    genes = np.ones(len(var), dtype=bool)
    if wish.needs_qc(marks):
        enough_cells(names[cells], names.unique(), 1)
        seen = np.sum([block.seen for block in examined], axis=0)
        targets = set() if wish.targets == "none" else {g for name in names.unique() for g in genes_of(name)}
        genes = kept_genes(seen, var.index, targets, wish.floors["min_cells_per_gene"])
    else:
        cells[:] = True
    if counts and "size_factor" not in obs:
        obs["size_factor"] = np.concatenate([block.totals for block in examined])
    return _Screen(stored, cells, genes, obs[cells], var[genes].copy(), source.uns, marks, filled[0])


def _stored(source: Source, layer: str | None) -> Stored:
    stored = Stored.find(source.name, layer)
    if stored is None or stored.form not in ("csr_matrix", "array"):
        form = "absent" if stored is None else stored.form
        raise InputError(
            f"{source.name}: {layer or 'X'} is {form} and cannot be read by rows: pass --config.data.backend=memory"
        )
    return stored


def _examined(stored: Stored, wish: Wishes, client: Any, filled: list[int]) -> Iterator[Examined]:
    calls = ((stored, start, stop, wish.floors["min_genes"]) for start, stop in stored.spans())
    for block in workers.in_order(client, _examine, calls, "while values were checked"):
        filled[0] += block.filled
        yield block


def _normalize(screen: _Screen, wish: Wishes) -> None:
    if screen.marks["normalization"] == "given":
        return
    size, target, told = depth(
        screen.obs, screen.marks, wish.depth_column(screen.marks), wish.target_sum,
        lambda: screen.obs["size_factor"].to_numpy(),
    )  # fmt: skip
    screen.obs["size_factor"] = size
    screen.scale = target / size
    screen.marks |= told


def _filter(screen: _Screen, wish: Wishes, client: Any) -> None:
    def measure(plan: Knockdown) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        calls = screen.calls(lambda here: (plan.rows(here.start, here.stop),))
        return workers.in_order(client, _measure, calls, "while knockdown was measured")

    keep, told = moved_cells(screen.obs, screen.var.index, wish.knockdown, wish.min_change, measure)
    screen.marks["knockdown"] = told
    screen.obs = screen.obs[keep]
    screen.scale = None if screen.scale is None else screen.scale[keep]
    screen.cells = screen.cells.copy()
    screen.cells[np.flatnonzero(screen.cells)[~keep]] = False


def _dispersions(screen: _Screen, train: np.ndarray, client: Any) -> np.ndarray:
    total, squares = np.zeros(len(screen.var)), np.zeros(len(screen.var))
    calls = screen.calls(lambda here: (train[here],))
    for more in workers.in_order(client, _moments, calls, "while genes were chosen"):
        total, squares = total + more[0], squares + more[1]
    return dispersions(total, squares, int(train.sum()))


def _write(screen: _Screen, chosen: np.ndarray, client: Any, out: str | os.PathLike) -> ad.AnnData:
    """The last time through. Blocks come back in order and are written as they come."""
    screen.genes = screen.genes.copy()
    screen.genes[np.flatnonzero(screen.genes)[~chosen]] = False
    screen.var = screen.var[chosen].copy()
    counts = screen.scale is not None
    keys = ("X", "layers/counts") if counts else ("X",)
    with RowWriter(out, len(screen.var), screen.most, keys) as writer:
        for rows, values in workers.in_order(client, _finished, screen.calls(lambda _: ()), "while cells were written"):
            if counts:
                writer.append(sp.csr_matrix((values, rows.indices, rows.indptr), shape=rows.shape), rows)
            else:
                writer.append(rows)
        _give_back()
        return writer.finish(screen.obs, screen.var, screen.all_uns)


# What follows runs on workers, one block at a time.


def _examine(stored: Stored, start: int, stop: int, min_genes: int) -> Examined:
    return examine(stored.read(start, stop), start, min_genes)


def _finished(
    stored: Stored, start: int, stop: int, keep: np.ndarray, genes: np.ndarray, scale: np.ndarray | None
) -> tuple[sp.csr_matrix, np.ndarray]:
    """The rows as they are stored, and their values in log-expression; the places are the same."""
    rows = kept_rows(stored.read(start, stop), keep, genes)
    return rows, rows.data if scale is None else log_scaled(rows, scale)


def _expression(*block: Any) -> sp.csr_matrix:
    rows, values = _finished(*block)
    return sp.csr_matrix((values, rows.indices, rows.indptr), shape=rows.shape)


def _measure(*call: Any) -> tuple[np.ndarray, np.ndarray]:
    *block, plan = call
    return plan.measure(_expression(*block))


def _moments(*call: Any) -> tuple[np.ndarray, np.ndarray]:
    *block, train = call
    return moments(_expression(*block)[np.flatnonzero(train)])
