"""Files that are either whole or absent, and what identifies their contents."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic", "digest"]

_CHUNK = 1 << 22


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; it takes the place of ``path`` only if the block succeeds.

    The block may write a file or a directory there. Whatever stood at ``path`` before stays until the new contents are
    whole, and is left untouched when the block raises.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix is kept because writers choose their format by it.
    holder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary = holder / path.name
    try:
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
