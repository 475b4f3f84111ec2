"""Dask: the workers that a scheduler or this machine gives, and work handed to them a few pieces at a time."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scbig.errors import InputError, some

__all__ = ["DeadWorkers", "cores", "current", "in_order", "local", "refuse_unseen", "scheduler", "told_loss"]

_SECONDS = 10
"""How long a scheduler may take to answer."""


class DeadWorkers(InputError):
    """Workers that had one piece of work died, again and again."""


def _distributed() -> Any:
    try:
        import distributed
    except ImportError as absent:
        raise InputError("Dask is not installed, which this needs: pip install 'scbig[large]'") from absent
    return distributed


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def current() -> Any | None:
    """The Dask client in use, such as one opened by ``scheduler`` or by the caller; None without."""
    try:
        from distributed import Client
    except ImportError:
        return None
    try:
        client = Client.current()
    except ValueError:
        return None
    # One that failed to connect may still be the current one.
    return client if client.status == "running" else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Dask's own log off the screen; what goes wrong is raised, and told in one line."""
    log = logging.getLogger("distributed")
    # Each part of distributed has a level of its own.
    parts = [log, *(logging.getLogger(n) for n in list(logging.root.manager.loggerDict) if n.startswith("distributed"))]
    levels = [part.level for part in parts]
    for part in parts:
        part.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for part, level in zip(parts, levels, strict=True):
            part.setLevel(level)


@contextmanager
def scheduler(address: str | None) -> Iterator[None]:
    """What asks for workers in this block gets those of the scheduler at ``address``; nothing changes without one.

    Raises:
        InputError: nothing answers there within some seconds, or it has no workers.
    """
    if not address:
        yield
        return
    distributed = _distributed()
    with _quiet():
        try:
            client = distributed.Client(address, timeout=_SECONDS)
        except (OSError, ValueError) as problem:
            reason = "" if isinstance(problem, TimeoutError | OSError) else f" ({str(problem).splitlines()[0]})"
            raise InputError(
                f"no Dask scheduler answers at {address}{reason}: check the address and that it is running, or leave "
                "out --scheduler"
            ) from problem
        try:
            try:
                client.wait_for_workers(1, timeout=_SECONDS)
            except TimeoutError as problem:
                raise InputError(
                    f"the Dask scheduler at {address} has no workers: start some and try again"
                ) from problem
            yield
        finally:
            client.close()


@contextmanager
def local(threads: int | None = None) -> Iterator[Any]:
    """A Dask client: the current one, or else that of a local cluster, closed in the end.

    The local cluster lives in this process: rows are not copied between processes, scripts need no guard against being
    imported again, and no worker pays for loading the libraries.

    Args:
        threads: of the local cluster; one per core when not given.
    """
    if (client := current()) is not None:
        yield client
        return
    distributed = _distributed()
    with (
        _quiet(),
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=threads or cores(), processes=False, dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"}, memory_limit=0, silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


def _sees(path: str) -> bool:
    return os.path.exists(path)


def refuse_unseen(client: Any, path: Path) -> None:
    """Refuses a file that some workers do not see, as on machines without a common file system.

    Raises:
        InputError: naming those workers; or that they cannot import scbig.
    """
    with told_loss("looking for the file"):
        try:
            found = client.run(_sees, str(path))
        except ModuleNotFoundError as absent:
            raise InputError(f"the Dask workers cannot import {absent.name}: install scbig there as well") from absent
    blind = sorted(worker for worker, sees in found.items() if not sees)
    if blind:
        raise InputError(f"the Dask workers {some(blind, 4)} do not see {path}: name a file that every worker can read")


@contextmanager
def told_loss(doing: str) -> Iterator[None]:
    """Says in one line that workers or the scheduler were lost while ``doing`` something."""
    distributed = _distributed()
    # asyncio's and the futures' own; the names differ between releases of distributed.
    from asyncio import CancelledError as Gone
    from concurrent.futures import CancelledError

    cancelled = (CancelledError, Gone, *filter(None, [getattr(distributed.client, "FutureCancelledError", None)]))
    try:
        yield
    except InputError:
        raise
    except distributed.scheduler.KilledWorker as lost:
        raise DeadWorkers(
            f"Dask workers died {doing} ({lost.last_worker.address} was the last): most often memory ran out; start "
            "workers with more, or fewer threads each, and run the same command again"
        ) from lost
    except (*cancelled, distributed.comm.CommClosedError, TimeoutError) as lost:
        raise InputError(
            f"the Dask scheduler was lost {doing}: see that it is running, and run the same command again"
        ) from lost


def in_order(client: Any, function: Callable, calls: Iterable[tuple], doing: str, ahead: int | None = None) -> Iterator:
    """Results of ``function(*call)`` in order; few calls are under way, so that memory does not grow with their number.

    Args:
        client: of Dask.
        function: what workers run; importable there.
        calls: arguments, small enough to be sent.
        doing: for messages, such as ``"while the screen was checked"``.
        ahead: most calls under way; two for each thread of the workers when not given.

    Raises:
        InputError: what the function refuses; workers or scheduler lost.
    """
    with told_loss(doing):
        ahead = ahead or 2 * max(1, sum(client.nthreads().values()))
        waiting: deque = deque()
        try:
            for call in calls:
                waiting.append(client.submit(function, *call, pure=False))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
