"""Text files of prior knowledge: opening, separators, columns, damage."""

from __future__ import annotations

import csv
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

import pandas as pd

from scbig.errors import InputError, some

__all__ = [
    "first_line",
    "is_number",
    "open_text",
    "read_table",
    "reading",
    "refuse_duplicates",
    "separator",
    "source_name",
    "whole",
]


def source_name(path: str | os.PathLike) -> str:
    """A file's name without its endings, under which coverage reports list it."""
    name = Path(path).name.removesuffix(".gz")
    return name[: name.rindex(".")] if "." in name[1:] else name


@contextmanager
def reading(path: str | os.PathLike) -> Iterator[Path]:
    """Turns an absent, truncated or corrupt file into a message that names it.

    Raises:
        InputError: the file is absent, a folder, not readable, or damaged.
    """
    path = Path(path)
    try:
        yield path
    except FileNotFoundError:
        raise InputError(f"no file {path}; check the path") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, a file is needed") from None
    except PermissionError:
        raise InputError(f"{path} may not be read; check its permissions") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is truncated or corrupt ({error}); fetch it again") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); is it the right file?"
        ) from None


@contextmanager
def whole(path: str | os.PathLike, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turns what a library raises on a damaged file into a message that names the file.

    Args:
        path: the file.
        what: its format, for the message.
        errors: what the library raises; absent and unreadable files are left to :func:`reading`.

    Raises:
        InputError: the file is damaged.
    """
    try:
        yield
    except (InputError, FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    except errors as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is truncated, corrupt or no {what} ({reason}); fetch or write it again") from None


def open_text(path: str | os.PathLike) -> TextIOWrapper:
    """Opens a text file, gzip-compressed where it begins as such whatever its name."""
    with open(path, "rb") as handle:
        compressed = handle.read(2) == b"\x1f\x8b"
    opener = gzip.open if compressed else open
    return opener(path, "rt", encoding="utf-8", newline=None)


def first_line(path: str | os.PathLike) -> str:
    """The first line of a text file, without its end.

    Raises:
        InputError: the file is empty, absent or damaged.
    """
    with reading(path), open_text(path) as handle:
        line = handle.readline().rstrip("\r\n")
    if not line.strip():
        raise InputError(f"{path} is empty or begins with an empty line")
    return line


def separator(line: str, path: str | os.PathLike) -> str:
    """What separates the fields of a line: a tab, a comma, or a space.

    Raises:
        InputError: the line holds none of them.
    """
    for mark in ("\t", ",", " "):
        if mark in line:
            return mark
    raise InputError(f"{path}: its first line has a single field; separate fields by tabs, commas or spaces")


def is_number(text: str) -> bool:
    """Whether a field reads as a number; nan and inf do."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_table(path: str | os.PathLike, columns: tuple[str, ...] | None = None) -> pd.DataFrame:
    """Reads a separated text file with a header, all fields as text (the gene NA stays a gene).

    Args:
        path: file, gz too.
        columns: those to read; all where None.

    Raises:
        InputError: the file is absent or damaged, or lacks one of ``columns``.
    """
    line = first_line(path)
    mark = separator(line, path)
    quoting = csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE
    with reading(path), open_text(path) as handle:
        try:
            table = pd.read_csv(handle, sep=mark, dtype=str, keep_default_na=False, na_filter=False, quoting=quoting)
        except pd.errors.ParserError as error:
            raise InputError(f"{path} does not read as a table: {str(error).strip()}") from None
    lacking = [name for name in columns or () if name not in table]
    if lacking:
        raise InputError(f"{path} has no column {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}")
    return table if columns is None else table[list(columns)]


def refuse_duplicates(genes: Collection[str], where: str) -> None:
    """Refuses names that occur more than once.

    Raises:
        InputError: naming them and ``where`` they stand.
    """
    if len(set(genes)) == len(genes):
        return
    twice = [gene for gene, n in Counter(genes).items() if n > 1]
    raise InputError(f"{where} holds names more than once: {some(twice)}; make them unique")
