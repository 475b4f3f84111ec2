"""Inert stand-ins for the names that pickled arrays and tensors go by.

They record what an array was made of; it is built by numpy's ``frombuffer`` once type, shape and bytes agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["GLOBALS", "STORAGES", "Named", "Refused", "settle"]

_DEPTH = 20  # of nested containers; a container that holds itself never ends

STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "|b1",
}


class Refused(Exception):
    """What a pickle asks for that no array or container needs; its text says what."""


# Stand-ins have no writable attributes: a pickle may set attributes of whatever it holds.
class Named:
    """A name that is passed on but never called."""

    __slots__ = ("_name",)
    _name: str

    def __init__(self, name: str):
        object.__setattr__(self, "_name", name)

    @property
    def name(self) -> str:
        """Module and name, joined by a dot."""
        return self._name

    def __setattr__(self, name: str, value: Any) -> None:
        raise Refused(f"a change of {self.name}")


class _Call(Named):
    """A name that may be called; it runs a function of this file."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, name: str, function: Callable[..., Any]):
        super().__init__(name)
        object.__setattr__(self, "_function", function)

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


@dataclass
class _Type:
    """A recorded numpy.dtype; numpy's own is made later, and only for plain numbers and text."""

    code: Any
    order: Any = "="

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 3:
            raise Refused("an array type with an unknown state")
        self.order = state[1]

    def dtype(self) -> np.dtype | None:
        """The type, or None for an array of Python objects."""
        code = self.code.name.removeprefix("numpy.") if isinstance(self.code, Named) else self.code
        if not isinstance(code, str) or self.order not in ("<", ">", "|", "="):
            raise Refused("an array type that is no plain number")
        if code in ("O", "O8", "object"):
            return None
        try:
            dtype = np.dtype(code)
        except (TypeError, ValueError, SyntaxError):
            raise Refused(f"the array type {code[:40]!r}") from None
        if dtype.kind not in "fiubUS" or not dtype.itemsize:
            raise Refused(f"the array type {code[:40]!r}")
        return dtype if self.order in "|=" else dtype.newbyteorder(self.order)


@dataclass
class _Array:
    """A recorded numpy.ndarray."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> Any:
        """The array, or for one of Python objects the flat list of them."""
        if not isinstance(self.state, tuple) or len(self.state) != 5:
            raise Refused("an array without contents")
        _, shape, kind, fortran, data = self.state
        return _build(shape, kind, "F" if fortran else "C", data)


def _build(shape: Any, kind: Any, order: str, data: Any) -> Any:
    """An array from its recorded parts, if they agree."""
    if not isinstance(kind, _Type) or not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
        raise Refused("an array of unknown type or shape")
    dtype = kind.dtype()
    if dtype is None:
        if isinstance(data, list):
            return data
        raise Refused("an array of Python objects")
    if isinstance(data, str):
        # Bytes of Python 2, read as Latin-1.
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise Refused("an array whose contents are no bytes")
    count = 1
    for n in shape:
        count *= n
    if count * dtype.itemsize != len(data):
        raise Refused(f"an array of {count} numbers from {len(data)} bytes")
    return np.frombuffer(bytes(data), dtype, count=count).reshape(shape, order=order)


def _reconstruct(*args: Any) -> _Array:
    if not args or not isinstance(args[0], Named) or args[0].name != "numpy.ndarray":
        raise Refused("an array of a class other than numpy.ndarray")
    return _Array()


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any = "C", *_: Any) -> Any:
    return _build(shape, kind, "F" if order == "F" else "C", data)


def _scalar(kind: Any, data: Any = b"") -> Any:
    value = _build((), kind, "C", data)
    return value[()] if isinstance(value, np.ndarray) else value


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them; other codecs would be code of the standard library's."""
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        raise Refused("_codecs.encode with another codec than latin1")
    return text.encode("latin1")


def _bytes(*args: Any) -> bytes:
    if args:
        raise Refused("builtins.bytes with arguments")
    return b""


def _dictionary(*args: Any) -> dict:
    """An ordered dictionary, or one given as a list of pairs."""
    return dict(*args)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """A copy of the part of a storage that a tensor shows.

    Raises:
        Refused: it reaches beyond the storage, or shows more numbers than the storage has.
    """
    parts = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)
    if not isinstance(storage, np.ndarray) or not parts:
        raise Refused("a tensor without storage, size or stride")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        raise Refused("a tensor whose offset, size or stride is no whole number")
    count, last = 1, offset
    for n, step in zip(size, stride, strict=True):
        count, last = count * n, last + max(n - 1, 0) * step
    if count == 0:
        return np.zeros(size, storage.dtype)
    if last >= len(storage) or count > len(storage):
        raise Refused(f"a tensor of {count} numbers up to place {last} of a storage of {len(storage)}")
    width = storage.itemsize
    return np.ndarray(size, storage.dtype, storage, offset * width, tuple(step * width for step in stride)).copy()


def _parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _type(code: Any = None, *_: Any) -> _Type:
    return _Type(code)


def _names() -> dict[str, Named]:
    """The names that arrays and containers need, under every module they have been written with."""
    called: dict[str, Callable[..., Any]] = {
        "numpy.dtype": _type,
        "_codecs.encode": _encode,
        "collections.OrderedDict": _dictionary,
        "builtins.bytes": _bytes,
        "__builtin__.bytes": _bytes,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _parameter,
    }
    for core in ("numpy.core", "numpy._core"):
        called[f"{core}.multiarray._reconstruct"] = _reconstruct
        called[f"{core}.multiarray.scalar"] = _scalar
        called[f"{core}.numeric._frombuffer"] = _frombuffer
    result: dict[str, Named] = {name: _Call(name, function) for name, function in called.items()}
    for name in ("numpy.ndarray", *STORAGES):
        result[name] = Named(name)
    return result


GLOBALS = _names()


def settle(value: Any) -> Any:
    """A loaded object with arrays in place of their records.

    Raises:
        Refused: it holds something that is no data, contradicts itself, or is nested too deep.
    """
    return _settle(value, {}, 0)


def _settle(value: Any, done: dict[int, Any], depth: int) -> Any:
    """Goes through containers; what is held in several places is settled once, or a small file could take for ever."""
    if depth > _DEPTH:
        raise Refused(f"containers nested more than {_DEPTH} deep")
    if isinstance(value, _Type | Named):
        raise Refused("a type in place of data")
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) not in done:
        done[id(value)] = _settle_members(value, done, depth + 1)
    return done[id(value)]


def _settle_members(value: Any, done: dict[int, Any], depth: int) -> Any:
    if isinstance(value, _Array):
        return _settle(value.value(), done, depth)
    if isinstance(value, dict):
        return {key: _settle(item, done, depth) for key, item in value.items()}
    # Long lists of numbers are common and hold no records.
    if all(type(item) in (float, int, str) for item in value):
        return value
    return type(value)([_settle(item, done, depth) for item in value])
