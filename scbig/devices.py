"""What JAX runs on: devices and processes.

Training is data-parallel: state and data are on every device, batches are spread over the devices along their first
axis, and XLA adds up what they contribute. Random draws do not depend on how a batch is spread, so many devices give the
numbers of one, to rounding. Several processes, one or more devices each, do the same; only the first of them writes.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from scbig.errors import InputError

__all__ = [
    "check_divides", "choose", "connect", "count", "is_first", "local", "mesh",
    "n_processes", "on_first", "replicate", "spread",
    "together",
]  # fmt: skip

T = TypeVar("T")

_PLATFORMS = {"cpu": ("cpu",), "gpu": ("gpu", "cuda", "rocm"), "tpu": ("tpu",)}
_PATIENCE = 120  # seconds in which the processes must find one another
_HEARTBEAT = 30  # seconds after which a silent process counts as dead
_FAILED = "scbig/failed"
_LAST_WORDS = 2.0  # seconds for the others to hear of a failure before this process is gone


class _Chosen:
    """The devices of this process's command; set by :func:`choose`, before anything is compiled."""

    mesh: Mesh | None = None
    processes = 1
    word = 0  # messages that the first process has sent to the others


# ---------------------------------------------------------------------------------------------------- devices


def choose(kind: str = "", number: int = 0) -> str:
    """Chooses the devices that training is spread over; returns a line that names them.

    Args:
        kind: ``cpu``, ``gpu`` or ``tpu``: refuse others; empty takes what JAX finds.
        number: how many; 0 takes all.

    Raises:
        InputError: where there are none of that kind, or fewer.
    """
    try:
        found = jax.devices()
    except RuntimeError as problem:
        raise InputError(
            f"JAX finds no device to work on ({str(problem).splitlines()[0]}); check JAX_PLATFORMS, or the driver of the GPU"
        ) from problem
    first = found[0]
    if kind and first.platform not in _PLATFORMS.get(kind, (kind,)):
        raise InputError(
            f"device {kind} was asked for but JAX found only {first.platform}; install scbig[gpu] or drop --config.device"
        )
    if number < 0 or number > len(found):
        raise InputError(
            f"--config.n_devices={number} asks for more devices than there are: {len(found)} of kind {first.platform}; "
            "0 takes all"
        )
    if number and _Chosen.processes > 1 and number != len(found):
        raise InputError(
            f"--config.n_devices={number}: {_Chosen.processes} processes share all their {len(found)} devices; drop it"
        )
    use = found[: number or len(found)]
    if _Chosen.mesh is not None and list(_Chosen.mesh.devices.flat) != use:
        # Programs traced for other devices name those.
        jax.clear_caches()
    _Chosen.mesh = Mesh(np.array(use), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    among = f"{len(use)} of {len(found)}" if len(use) < len(found) else f"{len(found)} in all"
    over = f", {_Chosen.processes} processes" if _Chosen.processes > 1 else ""
    return f"device: {first.platform} ({first.device_kind}, {among}{over}), jax {jax.__version__}"


def mesh() -> Mesh:
    """The chosen devices (all, where none were chosen) along one axis, ``data``."""
    if _Chosen.mesh is None:
        choose()
    found = _Chosen.mesh
    assert found is not None  # ``choose`` sets it or raises
    return found


def count() -> int:
    """How many devices a batch is spread over."""
    return mesh().size


def replicate(tree: T) -> T:
    """The pytree with every array whole on every device; on one device, bound to it.

    With several processes each must hold the same values, on the host or on its own devices. The result may share memory
    with what was given.
    """
    everywhere = NamedSharding(mesh(), PartitionSpec())

    def put(leaf):
        if count() == 1:
            return jax.device_put(leaf, leaf.sharding if isinstance(leaf, jax.Array) else None)
        there = isinstance(leaf, jax.Array) and leaf.sharding.is_equivalent_to(everywhere, leaf.ndim)
        if _Chosen.processes == 1 or there:
            return jax.device_put(leaf, everywhere)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(put, tree)


def local(tree: T) -> T:
    """The pytree with every replicated array on the first device of this process alone; what is there stays as it is."""
    if count() == 1:
        return tree
    here = jax.local_devices()[0]

    def take(leaf):
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            # A copy: a slice of a replicated array would share its buffer, which the next step may consume.
            return jnp.array(jax.device_put(leaf.addressable_data(0), here), copy=True)
        return leaf

    return jax.tree.map(take, tree)


def spread(tree: T) -> T:
    """Inside ``jit``: the pytree with the first axis of every array divided over the devices; unchanged on one device."""
    if count() == 1:
        return tree
    divided = NamedSharding(mesh(), PartitionSpec("data"))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, divided), tree)


def check_divides(number: int, what: str, setting: str) -> None:
    """Refuses a batch that does not divide over the devices.

    Args:
        number: its size.
        what: what it is, such as ``batch``.
        setting: the setting to change, such as ``pretrain.batch``.

    Raises:
        InputError: naming sizes that do.
    """
    n = count()
    if number % n:
        low = number // n * n
        nearest = f"{low} or {low + n}" if low else f"{n}"
        raise InputError(
            f"{what} of {number} does not divide over {n} devices; set --config.{setting}={nearest}, "
            "or fewer devices with --config.n_devices"
        )


# -------------------------------------------------------------------------------------------------- processes


def connect() -> None:
    """Joins the processes of one training, before JAX is used for anything else.

    Under Slurm and Open MPI they find one another; elsewhere ``JAX_COORDINATOR_ADDRESS`` (host:port of the first),
    ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID`` say who is who.

    Raises:
        InputError: where that is not known, or the first process does not answer.
    """
    if _Chosen.processes > 1 or jax.distributed.is_initialized():
        return
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = [os.environ.get(name) for name in names]
    if any(given) and not all(given):
        raise InputError(
            f"--distributed needs {' and '.join(n for n, v in zip(names, given, strict=True) if not v)} too"
        )
    try:
        numbers = [int(value) for value in given[1:]] if all(given) else [None, None]
    except ValueError:
        raise InputError(f"{names[1]}={given[1]} and {names[2]}={given[2]} must be whole numbers") from None
    where = given[0] or "the address that the cluster gives"
    if numbers[1] and ":" in (given[0] or ""):
        _reachable(given[0])
    try:
        jax.distributed.initialize(
            given[0], *numbers, initialization_timeout=_PATIENCE, heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )  # fmt: skip
    except (RuntimeError, ValueError, TypeError) as problem:
        reason = str(problem).splitlines()[0]
        raise InputError(
            f"--distributed: no other process was found through {where} ({reason}); start every process of the training "
            f"with the same {names[0]} and {names[1]} and its own {names[2]}, or under Slurm with srun"
        ) from problem
    _Chosen.processes = jax.process_count()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(stop,), daemon=True)
    watcher.start()
    # A thread that is still within JAX when Python ends takes the process down with it.
    atexit.register(watcher.join)
    atexit.register(stop.set)


def _reachable(address: str) -> None:
    """Waits for the first process to answer; JAX itself would end this one with a dump of its own."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            with socket.create_connection((host, int(port)), timeout=5):
                return
        except (OSError, ValueError, OverflowError) as problem:
            if time.monotonic() > until or isinstance(problem, (ValueError, OverflowError)):
                raise InputError(
                    f"--distributed: the first process does not answer at {address} ({problem}); "
                    "start it, or check JAX_COORDINATOR_ADDRESS"
                ) from problem
            time.sleep(0.2)


def n_processes() -> int:
    """How many processes share this training; 1 without :func:`connect`."""
    return _Chosen.processes


def is_first() -> bool:
    """Whether this process writes files and speaks: the only one, or the first of several."""
    return _Chosen.processes == 1 or jax.process_index() == 0


def on_first(work: Callable[[], T]) -> T:
    """Does the work in the first process while the others wait, for hours if need be.

    Args:
        work: what it returns must be fit for JSON where there are several processes; all of them get it.

    Raises:
        InputError: in the others, where the first is gone.
    """
    if _Chosen.processes == 1:
        return work()
    _Chosen.word += 1
    key = f"scbig/{_Chosen.word}"
    if jax.process_index() == 0:
        result = work()
        _client().key_value_set(key, json.dumps(result))
        return result
    while True:
        try:
            return json.loads(_client().blocking_key_value_get(key, 10_000))
        except jax.errors.JaxRuntimeError as problem:
            if "DEADLINE_EXCEEDED" not in str(problem):
                raise InputError("the first process of this training is gone; see what it said") from problem


@contextmanager
def together() -> Iterator[None]:
    """Work of several processes: the first alone is heard, and an error in one ends all.

    Raises:
        InputError: where another process has ended.
    """
    if _Chosen.processes == 1:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not is_first():
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            yield
        except BaseException as problem:
            told = f"process {jax.process_index()} stopped: {problem or type(problem).__name__}".splitlines()[0]
            # Only the first word counts: what the others fail of afterwards is this.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                _client().key_value_set(_FAILED, told)
                time.sleep(_LAST_WORDS)
            if _lost(problem):
                raise InputError("another process of this training has ended; see what it said") from problem
            raise


def _watch(stop: threading.Event) -> None:
    """Ends this process when another has failed: a process that waits for the failed one inside a step cannot."""
    while not stop.is_set():
        try:
            told = _client().blocking_key_value_get(_FAILED, 1_000)
        except jax.errors.JaxRuntimeError as problem:
            if "DEADLINE_EXCEEDED" in str(problem):
                continue
            return
        if not told.startswith(f"process {jax.process_index()} "):
            print(f"error: {told}", file=sys.stderr, flush=True)
            os._exit(2)
        return


def _client():
    """The processes' common key-value store: it waits without a device, and JAX has no public name for it."""
    from jax._src.distributed import global_state

    return global_state.client


def _lost(problem: BaseException) -> bool:
    """Whether an error of JAX says that another process of the training has ended."""
    signs = ("gloo", "connection closed", "connection reset", "coordination", "unavailable:", "nccl")
    text = str(problem).lower()
    return _Chosen.processes > 1 and isinstance(problem, jax.errors.JaxRuntimeError) and any(s in text for s in signs)
