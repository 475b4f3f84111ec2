"""Stage 1's cells from disk: blocks in shuffled order, mixed in a buffer, sent sparse, prefetched while the device works."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse as sp
from jaxtyping import Array, Float, Int

from scbig import devices
from scbig.data.store import Rows
from scbig.errors import InputError
from scbig.rng import generator

__all__ = [
    "FEEDS", "Feed", "Parts", "Schedule", "batches_per_call", "choose_feed", "densify", "loader_rate", "pack", "resident",
    "stored",
]  # fmt: skip

FEEDS = ("auto", "device", "stream")
_BLOCK = 512  # rows read at once: neighbours on disk
_CALL_BYTES = 32 << 20  # of stored values sent at once
_BUFFER_BYTES = 64 << 20  # of cells shuffled together
_AHEAD = 2  # calls whose cells are ready before they are needed
_HOST_GB = 4.0  # of dense cells kept in memory where the device is the CPU
_SHARE = 0.5  # of an accelerator's memory that cells may take


class Parts(NamedTuple):
    """Cells of several batches as they travel to the device, each padded to one number of stored values.

    Attributes:
        values: stored values, ``[batches, stored]``.
        places: where they stand in the batch's flattened ``[cells, genes]``, ascending; beyond its end for padding.
    """

    values: Float[Array | np.ndarray, "batches stored"]
    places: Int[Array | np.ndarray, "batches stored"]


def choose_feed(wanted: str, device_gb: float, n_cells: int, n_genes: int) -> tuple[str, str]:
    """``device`` or ``stream``, and the line that says so.

    Args:
        wanted: the setting ``pretrain.feed``.
        device_gb: the setting ``pretrain.device_gb``; 0: 4 GB on a CPU, half of an accelerator's memory.
        n_cells: training cells.
        n_genes: genes.

    Raises:
        InputError: for another word.
    """
    if wanted not in FEEDS:
        raise InputError(f"--config.pretrain.feed={wanted}: there are {', '.join(FEEDS)}")
    if device_gb < 0:
        raise InputError(f"--config.pretrain.device_gb={device_gb:g} is below 0; 0 takes what suits the device")
    need = 4.0 * n_cells * n_genes / 1e9
    limit = device_gb or _room()
    feed = wanted if wanted != "auto" else "device" if need <= limit else "stream"
    why = f"{need:.2g} GB of cells, pretrain.device_gb allows {limit:.3g}" if wanted == "auto" else "as asked"
    return feed, f"feed {feed} ({why})"


def _room() -> float:
    device = jax.local_devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    return _SHARE * stats["bytes_limit"] / 1e9 if stats and "bytes_limit" in stats else _HOST_GB


# ------------------------------------------------------------------------------------------------ resident


def resident(rows: Rows, size: int = 4096) -> Float[Array, "cells genes"]:
    """All rows, dense, on the device; the host never holds more than a block of them."""
    out = jnp.zeros(rows.shape, jnp.float32)
    for number, block in enumerate(rows.blocks(size)):
        out = _put(out, block.toarray(), number * size)
    return out


def _write(out, block, start):
    return jax.lax.dynamic_update_slice(out, block, (start, 0))


_put = jax.jit(_write, donate_argnums=0)


# ------------------------------------------------------------------------------------------------ streamed


class Schedule:
    """Which cells come when: a function of seed and position alone, so that any position can be begun at.

    The rows on disk fall into blocks of neighbours. Every epoch takes the blocks in an order of its own; consecutive
    ones fill a buffer, whose cells are shuffled. The epochs follow one another without a gap, so a batch may end one
    and begin the next, and each visits every cell once.

    Args:
        rows: the training cells.
        seed: the run's seed.
        buffer: cells that are shuffled together; fewer where they are more than 64 MB, at least one block.
        block: neighbouring rows of the file that are read at once.
    """

    def __init__(self, rows: Rows, seed: int, buffer: int = 16384, block: int = _BLOCK):
        number = rows.places // block
        first = np.flatnonzero(np.diff(number, prepend=-1))
        buffer = min(buffer, int(_BUFFER_BYTES / (8 * max(1.0, rows.nnz.mean()))))
        self._rows, self._seed, self._each = rows, seed, max(1, buffer // block)
        self._ends = np.stack([first, np.append(first[1:], len(number))], axis=1)
        self.n_cells = rows.shape[0]

    def windows(self, epoch: int) -> list[Int[np.ndarray, " blocks"]]:
        """The blocks of each filling of the buffer in one epoch."""
        order = generator(self._seed, f"gcae blocks {epoch}").permutation(len(self._ends))
        return [order[start : start + self._each] for start in range(0, len(order), self._each)]

    def pieces(self, position: int, size: int) -> Iterator[sp.csr_matrix]:
        """Endless rows from a position on, ``size`` at a time; only buffers that are needed are read.

        Args:
            position: cells that came before, over all epochs.
            size: rows in each piece.
        """
        fillings = ((self._read(ends), order) for ends, order in self._fillings(position))
        for parts in _cut(fillings, size):
            yield parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def places(self, position: int, size: int) -> Iterator[Int[np.ndarray, " cells"]]:
        """Which rows those of :meth:`pieces` are; nothing is read."""
        fillings = self._fillings(position)
        return map(
            np.concatenate, _cut(((np.concatenate([np.arange(a, b) for a, b in e]), o) for e, o in fillings), size)
        )

    def _read(self, ends: Int[np.ndarray, "blocks 2"]) -> sp.csr_matrix:
        parts = [self._rows[int(a) : int(b)] for a, b in ends]
        return parts[0] if len(parts) == 1 else sp.vstack(parts, format="csr")

    def _fillings(self, position: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ends of each buffer's blocks, and the order in which its rows come, from a position on."""
        epoch, skip = divmod(position, self.n_cells)
        while True:
            for number, blocks in enumerate(self.windows(epoch)):
                ends = self._ends[np.sort(blocks)]
                size = int((ends[:, 1] - ends[:, 0]).sum())
                if skip >= size:
                    skip -= size
                    continue
                order = generator(self._seed, f"gcae buffer {epoch} {number}").permutation(size)[skip:]
                skip = 0
                yield ends, order
            epoch += 1


def _cut(fillings: Iterator[tuple[Any, np.ndarray]], size: int) -> Iterator[list[Any]]:
    """Rows of buffers in their order, in lists that hold ``size`` of them together."""
    held: list[Any] = []
    missing = size
    for window, order in fillings:
        start = 0
        while start < len(order):
            taken = order[start : start + missing]
            held.append(window[taken])
            start, missing = start + len(taken), missing - len(taken)
            if not missing:
                yield held
                held, missing = [], size
        del window, order  # before the next one is read


def stored(rows: Rows, batch: int) -> int:
    """Stored values that no batch can exceed: those of the fullest cells, as many as a batch has."""
    each = rows.nnz
    most = int(each.max(initial=0)) * batch
    if len(each) >= batch:
        # Where two epochs meet, a batch may hold a cell twice.
        half = -(-batch // 2)
        most = 2 * int(np.partition(each, len(each) - half)[-half:].sum())
    width = max(256, -(-most // 256) * 256)
    if batch * rows.shape[1] + width >= 2**31:
        raise InputError(f"--config.pretrain.batch={batch} times {rows.shape[1]:,} genes is too much; lower it")
    return width


def batches_per_call(chunk: int, width: int) -> int:
    """The largest divisor of ``chunk`` whose batches stay within 32 MB, so that those on their way stay few."""
    return max(n for n in range(1, chunk + 1) if chunk % n == 0 and (n == 1 or n * width * 8 <= _CALL_BYTES))


def pack(rows: sp.csr_matrix, batch: int, width: int) -> Parts:
    """CSR rows as batches of stored values and places.

    Args:
        rows: cells of whole batches, columns sorted.
        batch: cells of a batch.
        width: stored values of a batch, padding included.
    """
    n_batches, n_genes = rows.shape[0] // batch, rows.shape[1]
    values = np.zeros((n_batches, width), np.float32)
    # Every padding has a place of its own, so that places are unique and ascending.
    places = np.tile(np.arange(width, dtype=np.int32) + batch * n_genes, (n_batches, 1))
    row = np.repeat(np.arange(rows.shape[0], dtype=np.int32) % batch, np.diff(rows.indptr))
    flat = row * np.int32(n_genes) + rows.indices
    ends = rows.indptr[::batch]
    for number, (a, b) in enumerate(pairwise(ends)):
        if b - a > width:
            raise ValueError(f"a batch of {b - a} stored values does not fit {width}")
        values[number, : b - a], places[number, : b - a] = rows.data[a:b], flat[a:b]
    return Parts(values, places)


def densify(
    values: Float[Array, " stored"], places: Int[Array, " stored"], batch: int, n_genes: int
) -> Float[Array, "cells genes"]:
    """One batch, dense, inside ``jit``."""
    flat = jnp.zeros(batch * n_genes, jnp.float32)
    flat = flat.at[places].set(values, mode="drop", unique_indices=True, indices_are_sorted=True)
    return flat.reshape(batch, n_genes)


class Feed:
    """An endless supply of :class:`Parts` and their cells' depth, made by a thread of its own; a context manager.

    Args:
        schedule: which cells come when.
        width: stored values of a batch.
        batch: cells of a batch.
        calls: batches in one call of the compiled program.
        depth: of the rows of the schedule, or None where it is not needed.
    """

    def __init__(
        self,
        schedule: Schedule,
        width: int,
        batch: int,
        calls: int,
        depth: Float[np.ndarray, " cells"] | None = None,
    ):
        self._schedule, self._width, self._batch, self._calls, self._depth = schedule, width, batch, calls, depth
        self._ready: queue.Queue = queue.Queue(maxsize=_AHEAD)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.cells, self.seconds = 0, 0.0

    def start(self, step: int) -> None:
        """Begins with the batch of an update; those before it are not read."""
        if self._thread is not None:
            raise ValueError("a feed starts once")
        self._thread = threading.Thread(target=self._work, args=(step,), name="feed", daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[Parts, Float[Array, "batches cells"] | None]:
        """The next batches and the depth of their cells, on the device; an error of the thread is raised as it is."""
        found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        return found

    @property
    def rate(self) -> float:
        """Cells per second of the thread's own work, without its waiting."""
        return self.cells / max(self.seconds, 1e-9)

    def _work(self, step: int) -> None:
        try:
            size = self._calls * self._batch
            pieces = self._schedule.pieces(step * self._batch, size)
            places = self._schedule.places(step * self._batch, size)
            while not self._stop.is_set():
                begun = time.perf_counter()
                depth = None if self._depth is None else self._depth[next(places)].reshape(self._calls, self._batch)
                parts = devices.replicate((pack(next(pieces), self._batch, self._width), depth))
                self.seconds += time.perf_counter() - begun
                self.cells += self._calls * self._batch
                self._offer(parts)
        except BaseException as problem:  # noqa: BLE001  handed over, and raised where it can be seen
            self._offer(problem)

    def _offer(self, item: Any) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def __enter__(self) -> Feed:
        """Not yet started: the first update is known only when training continues."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        while not self._ready.empty():
            self._ready.get_nowait()
        if self._thread is not None:
            self._thread.join()


def loader_rate(x: Any, *, batch: int = 256, calls: int = 16, seconds: float = 3.0, seed: int = 0) -> float:
    """Cells per second that the stream brings to the device while nothing uses them.

    Args:
        x: ``Store.X`` of an open screen, some of its rows, or a matrix in memory, ``[cells, genes]``.
        batch: cells of a batch.
        calls: batches sent at once.
        seconds: for how long to measure, beyond the first filling of the buffer.
        seed: of the order.
    """
    rows = Rows.of(x)
    width, cells = stored(rows, batch), 0
    pieces = Schedule(rows, seed).pieces(0, calls * batch)
    begun = time.perf_counter()
    while not cells or time.perf_counter() - begun < seconds:
        jax.block_until_ready(devices.replicate(pack(next(pieces), batch, width)))
        cells += calls * batch
    return cells / (time.perf_counter() - begun)
