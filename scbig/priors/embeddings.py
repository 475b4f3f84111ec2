"""Embeddings of genes (or drugs) and the files they come in."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float32

from scbig.errors import InputError, some
from scbig.files import atomic
from scbig.priors.tables import (
    first_line,
    is_number,
    open_text,
    reading,
    refuse_duplicates,
    separator,
    source_name,
    whole,
)
from scbig.priors.unpickle import read_pickle, read_torch

__all__ = ["Embedding", "read_embedding", "save_embedding"]


# What zipfile and numpy raise on damaged archives; NotImplementedError is a RuntimeError.
_ZIP_ERRORS = BadZipFile, OSError, ValueError, RuntimeError, KeyError, SyntaxError
_HEADS = {"", "gene", "genes", "symbol", "symbols", "gene_symbol", "name", "names", "id", "index"}


@dataclass(frozen=True)
class Embedding:
    """Vectors of named genes (or drugs) from one source.

    Attributes:
        source: name of the source, for reports.
        genes: names, unique.
        vectors: one row per name.
    """

    source: str
    genes: tuple[str, ...]
    vectors: Float32[np.ndarray, "genes dims"]


def read_embedding(path: str | os.PathLike, key: str | None = None) -> Embedding:
    """Reads an embedding; the format follows the file's ending.

    - ``.npz``: arrays ``genes`` (or ``names``) and ``vectors``; ``key`` names another array of vectors.
    - ``.csv``, ``.tsv``, ``.txt`` (each also ``.gz``): names in the first column, numbers in the others. A
      first line is a header where its first field is empty or a usual word such as gene, where another is no
      number, or where the others count the columns from 0 or 1.
    - ``.parquet``: names in the index or in the one text column; numbers in the others, or lists in a single
      one.
    - ``.h5ad``: ``obs_names`` and ``X``; with ``key``, ``obs_names`` and ``obsm[key]``, or ``var_names`` and
      ``varm[key]``.
    - ``.pt``, ``.pth``: a dictionary from name to tensor, as of ESM2, in PyTorch's zip format; without
      PyTorch.
    - ``.pkl``, ``.pickle``: a dictionary from name to array, or GeneCompass's three (by symbol, by Ensembl
      identifier, symbol to Ensembl identifier): vectors by symbol first, then through the identifier, then
      identifiers no symbol leads to.

    Pickled code is never executed: anything but arrays and containers is refused.

    Raises:
        InputError: the file is absent, damaged, of another format or layout, holds nothing, duplicate names,
            vectors of unequal length, NaN or infinite values, or a pickled object that is neither array nor
            container.
    """
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes]
    ending = endings[-2] if len(endings) > 1 and endings[-1] == ".gz" else endings[-1] if endings else ""
    reader = _READERS.get(ending)
    if reader is None:
        raise InputError(
            f"{path}: no reader for files that end in {ending or 'nothing'}; there are {' '.join(_READERS)}"
        )
    if key is not None and ending not in (".npz", ".h5ad"):
        raise InputError(f"{path}: the key {key} has no meaning for a {ending} file; leave it out")
    with reading(path):
        if not path.stat().st_size:
            raise InputError(f"{path} is empty")
        names, vectors = reader(path, key)
    return make_embedding(source_name(path), names, vectors, str(path))


def save_embedding(embedding: Embedding, path: str | os.PathLike) -> None:
    """Writes an embedding as ``.npz`` with arrays ``genes`` and ``vectors``, whole or not at all.

    Raises:
        InputError: the path does not end in ``.npz``.
    """
    if Path(path).suffix != ".npz":
        raise InputError(f"{path}: embeddings are written as .npz; choose such a name")
    with atomic(path) as temporary:
        np.savez_compressed(temporary, genes=np.asarray(embedding.genes, str), vectors=embedding.vectors)


def make_embedding(source: str, names: list[str], vectors: np.ndarray, where: str) -> Embedding:
    """Checks names and vectors and puts them together.

    Raises:
        InputError: naming ``where`` and the offenders; see :func:`read_embedding`.
    """
    if vectors.ndim != 2:
        raise InputError(f"{where}: vectors must be a matrix with a row per name, not of shape {vectors.shape}")
    if len(names) != len(vectors):
        raise InputError(f"{where}: {len(names):,} names but {len(vectors):,} vectors; the file does not fit together")
    if not vectors.size:
        raise InputError(f"{where} holds no vectors")
    if vectors.dtype.kind not in "fiub":
        raise InputError(f"{where}: vectors are not numbers but {vectors.dtype}")
    if not all(names):
        raise InputError(f"{where}: name {names.index('') + 1} is empty; every vector needs a name")
    refuse_duplicates(names, where)
    # Overflow to infinity is reported with the other non-finite values, not as a warning.
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(vectors, np.float32)
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise InputError(f"{where}: NaN or infinite values for {some(np.asarray(names)[bad])}; remove or repair them")
    return Embedding(source, tuple(names), vectors)


def _npz(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    wanted = key or "vectors"
    # Opened here since np.load leaves a damaged file open.
    with whole(path, ".npz of plain arrays", *_ZIP_ERRORS), open(path, "rb") as handle:
        file = np.load(handle, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"{path} is a single array; an .npz of arrays genes and vectors is needed")
        names = next((name for name in ("genes", "names") if name in file.files), "genes")
        lacking = [name for name in (names, wanted) if name not in file.files]
        if lacking:
            has = ", ".join(file.files) or "none"
            raise InputError(f"{path} has no array {' and '.join(lacking)}; it has {has}")
        genes, vectors = file[names], file[wanted]
    if genes.dtype.kind not in "US" or genes.ndim != 1:
        raise InputError(f"{path}: {names} must be a list of text, not {genes.dtype} of shape {genes.shape}")
    return _text(genes), vectors


def _text(values: np.ndarray) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values.tolist()]


def _is_header(fields: list[str]) -> bool:
    """Whether a first line names columns: by its first field, a field that is no number, or by counting them."""
    rest = fields[1:]
    if fields[0].lower() in _HEADS or not all(is_number(field) for field in rest):
        return True
    # Two numbers may well be a vector.
    return len(rest) > 2 and rest in ([str(i + first) for i in range(len(rest))] for first in (0, 1))


def _delimited(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    line = first_line(path)
    mark = separator(line, path)
    fields = [field.strip().strip('"') for field in line.split(mark)]
    quoting = csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE
    skip = int(_is_header(fields))
    with open_text(path) as handle:
        try:
            table = pd.read_csv(
                handle,
                sep=mark,
                header=None,
                skiprows=skip,
                dtype={0: str},
                keep_default_na=False,
                quoting=quoting,
            )
        except pd.errors.EmptyDataError:
            raise InputError(f"{path} holds no vectors below its header") from None
        except pd.errors.ParserError as error:
            raise InputError(f"{path}: lines of unequal length, {str(error).strip()}") from None
    names = table[0].tolist()
    for column in range(1, table.shape[1]):
        if table[column].dtype.kind in "fiub":
            continue
        # Only columns that did not read as numbers are looked at cell by cell.
        numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
        odd = [i for i, text in enumerate(table[column]) if not is_number(str(text))]
        if odd:
            raise InputError(
                f"{path}: '{table[column][odd[0]]}' in column {column + 1} for {names[odd[0]]} "
                "is not a number; is the line complete?"
            )
        table[column] = numbers
    return names, table.iloc[:, 1:].to_numpy(np.float32)


def _parquet(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    if find_spec("pyarrow") is None:
        raise InputError(f"{path}: reading parquet needs pyarrow; install it, or save the table as .npz or .csv")
    import pyarrow

    errors = pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError
    with whole(path, "parquet file", *errors):
        table = pd.read_parquet(path, engine="pyarrow")
    numeric = [name for name in table if pd.api.types.is_numeric_dtype(table[name])]
    others = [name for name in table if name not in numeric]
    lists = [name for name in others if len(table) and np.ndim(table[name].iloc[0]) == 1]
    texts = [name for name in others if name not in lists]
    indexed = len(table) > 0 and isinstance(table.index[0], str)
    if len(texts) + indexed != 1 or len(lists) > 1 or bool(lists) == bool(numeric):
        raise InputError(
            f"{path}: one column (or the index) of names and either numbers or one column of lists are "
            f"needed; it has columns {some(map(str, table.columns))}"
        )
    names = [str(name) for name in (table.index if indexed else table[texts[0]])]
    if lists:
        return names, stack(dict(enumerate(map(np.asarray, table[lists[0]]))), str(path), names)
    return names, table[numeric].to_numpy(np.float32)


def _h5ad(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    import anndata as ad

    with whole(path, ".h5ad file", OSError, KeyError, ValueError, RuntimeError, TypeError, AttributeError, IndexError):
        adata = ad.read_h5ad(path)
    if key is None:
        names, vectors = adata.obs_names, adata.X
        if vectors is None:
            raise InputError(f"{path} has no X; name one of obsm or varm: {', '.join([*adata.obsm, *adata.varm])}")
    elif key in adata.obsm:
        names, vectors = adata.obs_names, adata.obsm[key]
    elif key in adata.varm:
        names, vectors = adata.var_names, adata.varm[key]
    else:
        raise InputError(
            f"{path} has no {key}; obsm has {', '.join(adata.obsm) or 'none'}, varm {', '.join(adata.varm) or 'none'}"
        )
    vectors = vectors.toarray() if sp.issparse(vectors) else np.asarray(vectors)
    return names.astype(str).tolist(), vectors


def _pt(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    return _from_dictionaries(read_torch(path), path)


def _pickle(path: Path, key: str | None) -> tuple[list[str], np.ndarray]:
    return _from_dictionaries(read_pickle(path), path)


def _from_dictionaries(found: object, path: Path) -> tuple[list[str], np.ndarray]:
    """Names and vectors of one dictionary of vectors, or of several as in GeneCompass."""
    if isinstance(found, dict) and found and not any(isinstance(value, dict) for value in found.values()):
        if set(found) == {"genes", "vectors"}:
            return _text(np.asarray(found["genes"], str)), np.asarray(found["vectors"])
        parts = [found]
    elif isinstance(found, dict | list | tuple):
        parts = [part for part in (found.values() if isinstance(found, dict) else found) if isinstance(part, dict)]
    else:
        parts = []
    if not parts:
        raise InputError(f"{path} holds no dictionary from gene to vector but {_kind(found)}")
    by_symbol: dict[str, np.ndarray] = {}
    by_ensembl: dict[str, np.ndarray] = {}
    ensembl_of: dict[str, str] = {}
    for part in parts:
        names = [name for name in part if isinstance(name, str)]
        if len(names) != len(part):
            raise InputError(f"{path}: a dictionary has keys that are not text, such as {_kind(_first_odd(part))}")
        if part and all(isinstance(value, str) for value in part.values()):
            ensembl_of.update(part)
        elif part:
            is_ensembl = sum(name.startswith("ENS") for name in names) > len(names) / 2
            (by_ensembl if is_ensembl else by_symbol).update(part)
    return _by_symbol(by_symbol, by_ensembl, ensembl_of, path)


def _by_symbol(
    by_symbol: Mapping[str, object],
    by_ensembl: Mapping[str, object],
    ensembl_of: Mapping[str, str],
    path: Path,
) -> tuple[list[str], np.ndarray]:
    vectors = dict(by_symbol)
    for symbol, ensembl in ensembl_of.items():
        if symbol not in vectors and ensembl in by_ensembl:
            vectors[symbol] = by_ensembl[ensembl]
    reached = set(ensembl_of.values())
    for ensembl, vector in by_ensembl.items():
        if ensembl not in reached:
            vectors.setdefault(ensembl, vector)
    if not vectors:
        raise InputError(f"{path} holds no vectors")
    return list(vectors), stack(vectors, str(path), list(vectors))


def stack(vectors: Mapping, where: str, names: list[str]) -> np.ndarray:
    """Stacks vectors of equal length; one more leading axis of length 1 is dropped.

    Raises:
        InputError: naming the first entry that is no vector, or of another length than the first.
    """
    rows = []
    for name, value in zip(names, vectors.values(), strict=True):
        try:
            row = np.asarray(value)
        except ValueError:
            raise InputError(f"{where}: {name} has no plain vector") from None
        if row.ndim == 2 and len(row) == 1:
            row = row[0]
        if row.ndim != 1 or row.dtype.kind not in "fiub":
            raise InputError(f"{where}: {name} has no vector of numbers but {_kind(value)} of shape {row.shape}")
        if rows and len(row) != len(rows[0]):
            raise InputError(f"{where}: {name} has {len(row)} numbers, {names[0]} has {len(rows[0])}; all must agree")
        with np.errstate(over="ignore"):
            rows.append(row.astype(np.float32))
    return np.stack(rows) if rows else np.zeros((0, 0), np.float32)


def _kind(value: object) -> str:
    return type(value).__name__


def _first_odd(part: dict) -> object:
    return next(name for name in part if not isinstance(name, str))


_READERS: dict[str, Callable[[Path, str | None], tuple[list[str], np.ndarray]]] = {
    ".npz": _npz,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".txt": _delimited,
    ".parquet": _parquet,
    ".h5ad": _h5ad,
    ".pt": _pt,
    ".pth": _pt,
    ".pkl": _pickle,
    ".pickle": _pickle,
}
