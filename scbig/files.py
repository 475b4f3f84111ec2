"""Files that are either whole or absent, and what identifies their contents."""

import errno
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scbig.errors import InputError

__all__ = ["atomic", "digest", "full", "no_space"]

_CHUNK = 1 << 22
_LOOP_GONE = "Event loop is closed"
_FULL = {
    errno.ENOSPC: "no space is left",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file may not be so large",
}


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it takes the place of ``path`` only if the block succeeds.

    The block may write a file or a directory there. Whatever stood at ``path`` before stays until the new contents are
    whole, and is left untouched when the block raises.

    Raises:
        InputError: where the disk or a quota is full.
    """
    path = Path(path)
    with no_space(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept because writers choose their format by it.
        holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
        with no_space(path):
            yield temporary
        if not (path.is_dir() and not path.is_symlink()):
            os.replace(temporary, path)
            return
        # A directory cannot be replaced in one step: the old one is moved aside first.
        aside = holder / "old"
        os.rename(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            os.rename(aside, path)
            raise
    finally:
        shutil.rmtree(holder, ignore_errors=True)


@contextmanager
def no_space(path: str | os.PathLike) -> Iterator[None]:
    """Turns the errors of a full disk within the block into one line that names what was being written.

    Raises:
        InputError: for them; others pass as they are.
    """
    try:
        with _less_noise():
            yield
    except Exception as problem:
        reason = full(problem)
        if reason is None or isinstance(problem, InputError):
            raise
        raise InputError(
            f"{reason} while writing {path}; free some and run the same command again: what is finished stays"
        ) from problem


@contextmanager
def _less_noise() -> Iterator[None]:
    """HDF5 cannot raise what happens while it lets go of an object on a full disk; it prints it, for every object.

    So do the threads of TensorStore, whose event loop is gone by then; and Orbax logs what it raises as well.
    """
    before = sys.excepthook, sys.unraisablehook

    def excepthook(kind, problem, trace):
        if full(problem) is None and str(problem) != _LOOP_GONE:
            before[0](kind, problem, trace)

    def unraisablehook(found):
        if full(found.exc_value) is None and str(found.exc_value) != _LOOP_GONE:
            before[1](found)

    def of_interest(entry):
        return full(entry.exc_info[1] if entry.exc_info else None) is None

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    logger = logging.getLogger("absl")
    logger.addFilter(of_interest)
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = before
        logger.removeFilter(of_interest)


def full(problem: BaseException | None) -> str | None:
    """What an error says of a full disk, a quota or a limit of file size, through all its causes; None of others.

    HDF5, Zarr and TensorStore report them in words, each in errors of its own.
    """
    seen: set[int] = set()
    waiting = [problem]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        for code, reason in _FULL.items():
            text = str(each)
            if getattr(each, "errno", None) == code or f"errno = {code}," in text or os.strerror(code) in text:
                return reason
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
    return None


def digest(path: str | os.PathLike) -> str:
    """The sha256 of a file, or of a directory's relative names and contents, as 64 hexadecimal digits.

    Raises:
        FileNotFoundError: nothing is there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"nothing at {path} to take the sha256 of")
    total = hashlib.sha256()
    if path.is_file():
        _feed(total, path)
        return total.hexdigest()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(str(file.relative_to(path)).encode() + b"\0")
        _feed(total, file)
    return total.hexdigest()


def _feed(total, file: Path) -> None:
    with open(file, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            total.update(chunk)
