"""Pickled arrays and PyTorch's ``.pt`` files, read without executing what they hold.

A pickle is a program: it may name any function of any module and call it. The readers here resolve no name at
all. The few that numpy and PyTorch write for an array stand for inert records of ours; any other is refused
by name, before anything is called. Arrays are then built from the recorded type, shape and bytes.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scbig.errors import InputError
from scbig.priors.pickled import GLOBALS, STORAGES, Named, Refused, settle
from scbig.priors.tables import reading, whole

__all__ = ["read_pickle", "read_torch"]

_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # magic number of PyTorch's format before 1.6
# What the pickle machine raises on bytes that are no pickle.
_FAILURES = (
    pickle.UnpicklingError,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    IndexError,
    KeyError,
    MemoryError,
    OverflowError,
    TypeError,
    ValueError,
)


def read_pickle(path: str | os.PathLike) -> Any:
    """Reads a pickle of containers, numbers, text and numpy arrays; nothing in it is executed.

    Raises:
        InputError: naming the first global that is none of these, or the file is absent, damaged or
            PyTorch's.
    """
    with reading(path):
        data = Path(path).read_bytes()
    if zipfile.is_zipfile(io.BytesIO(data)):
        return read_torch(path)
    if data.startswith(_OLD_TORCH):
        raise InputError(_old(path))
    return _plain(_load(data, path, None), path)


def read_torch(path: str | os.PathLike) -> Any:
    """Reads a ``.pt`` file of containers and tensors as numpy arrays, without PyTorch; nothing is executed.

    The zip format of PyTorch 1.6 and later is read, and a bare pickle of numpy arrays that goes by the name.

    Raises:
        InputError: naming the first global that is no tensor or container, or the file is absent, damaged,
            compressed, or in the older format.
    """
    with reading(path):
        with open(path, "rb") as handle:
            head = handle.read(len(_OLD_TORCH))
        if head.startswith(_OLD_TORCH):
            raise InputError(_old(path))
        if not zipfile.is_zipfile(path):
            # A cut zip file has lost its directory, which stands at the end.
            if head.startswith(b"PK"):
                raise InputError(f"{path} is truncated or corrupt (a zip file without its directory); fetch it again")
            return read_pickle(path)
        # NotImplementedError, of compression unknown to zipfile, is a RuntimeError.
        with (
            whole(path, ".pt file", zipfile.BadZipFile, OSError, RuntimeError),
            zipfile.ZipFile(path) as archive,
        ):
            return _read_archive(archive, path)


def _old(path: str | os.PathLike) -> str:
    return f"{path} is in PyTorch's format before 1.6; load it there and save it again by torch.save"


def _read_archive(archive: zipfile.ZipFile, path: str | os.PathLike) -> Any:
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(roots) != 1:
        raise InputError(f"{path} is a zip file but not PyTorch's: it holds {len(roots)} files data.pkl, not one")
    root = roots[0]
    # Storages are written as they are; compressed entries would let a small file fill the memory.
    packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(f"{path}: {packed[0]} is compressed, which PyTorch never does; save it again by torch.save")
    order = archive.read(f"{root}byteorder").strip() if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise InputError(f"{path}: unknown byte order {order.decode(errors='replace')!r}")
    cache: dict[str, np.ndarray] = {}

    def storage(identifier: Any) -> np.ndarray:
        """The numbers that a persistent identifier stands for; one storage may serve several tensors."""
        if not (isinstance(identifier, tuple) and len(identifier) == 5 and identifier[0] == "storage"):
            raise Refused("a persistent identifier that is no storage")
        _, kind, name, _, count = identifier
        if not (isinstance(kind, Named) and kind.name in STORAGES):
            raise Refused(f"the storage type {getattr(kind, 'name', type(kind).__name__)}")
        entry = f"{root}data/{name}"
        if entry not in entries:
            raise Refused(f"the storage {entry}, which the file lacks")
        if entry not in cache:
            cache[entry] = _decode(archive.read(entry), STORAGES[kind.name], big=order == b"big")
        if len(cache[entry]) < count:
            raise Refused(f"{count} numbers of the storage {entry}, which has {len(cache[entry])}")
        return cache[entry]

    return _plain(_load(archive.read(f"{root}data.pkl"), path, storage), path)


def _decode(data: bytes, code: str, big: bool) -> np.ndarray:
    if code == "bfloat16":
        # The upper half of a float32.
        half = np.frombuffer(data, ">u2" if big else "<u2").astype(np.uint32)
        return (half << 16).view(np.float32)
    dtype = np.dtype(code)
    return np.frombuffer(data, dtype.newbyteorder(">") if big else dtype)


def _load(data: bytes, path: str | os.PathLike, storage: Callable[[Any], np.ndarray] | None) -> Any:
    """Runs the pickle machine with our names in place of the file's."""
    try:
        return _Unpickler(io.BytesIO(data), storage).load()
    except Refused as error:
        raise InputError(
            f"{path} asks for {error}; only arrays and containers are read, nothing was executed. "
            "If you trust its maker, load it there and save it as .npz with arrays genes and vectors"
        ) from None
    except _FAILURES as error:
        raise InputError(f"{path} is truncated, corrupt or no pickle ({str(error) or type(error).__name__})") from None


# The machine written in Python: damaged files make the one in C allocate gigabytes, or worse.
class _Unpickler(pickle._Unpickler):
    """Resolves the names in ``GLOBALS`` to inert stand-ins and no others."""

    # Set by ``load``.
    read: Callable[[int], bytes]
    append: Callable[[Any], None]

    def __init__(self, file: io.BytesIO, storage: Callable[[Any], np.ndarray] | None):
        # Latin-1 is what arrays pickled by Python 2 need.
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def load_bytearray8(self) -> None:
        """Reads first and allocates then; the length may be false."""
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(min(length, sys.maxsize))))

    dispatch = pickle._Unpickler.dispatch | {pickle.BYTEARRAY8[0]: load_bytearray8}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        # Torch's names mean something beside its storages only.
        if full in GLOBALS and not (full.startswith("torch.") and self._storage is None):
            return GLOBALS[full]
        raise Refused(full)

    def persistent_load(self, pid: Any) -> np.ndarray:
        if self._storage is None:
            raise Refused("a persistent identifier")
        return self._storage(pid)


def _plain(value: Any, path: str | os.PathLike) -> Any:
    """The loaded object with arrays in place of their records."""
    try:
        return settle(value)
    except Refused as error:
        raise InputError(f"{path} holds {error}; only arrays and containers are read, nothing was executed") from None
