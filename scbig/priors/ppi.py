"""Protein-protein interactions: STRING and plain edge lists, and the adjacency matrix of a gene list."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float32, Int32

from scbig.errors import InputError, some
from scbig.priors.aliases import AliasTable
from scbig.priors.coverage import Coverage
from scbig.priors.tables import (
    first_line,
    is_number,
    open_text,
    read_table,
    reading,
    refuse_duplicates,
    separator,
    source_name,
)

__all__ = ["PPI", "Network", "adjacency", "read_ppi"]

_CHUNK = 1_000_000  # edges held at once while reading; STRING's human links are 12 million lines
_SCORES = ("combined_score", "score", "weight")
_FIRST = {
    "gene_a",
    "gene1",
    "gene_1",
    "protein1",
    "protein_a",
    "source",
    "from",
    "node1",
    "symbol_a",
    "item_id_a",
}
_STRING_ID = re.compile(r"\d+\.\w+")
_FULL_SCORE = 1000.0  # of an edge in a list without scores


@dataclass(frozen=True)
class PPI:
    """An undirected network of genes; every edge once, without self-loops.

    Attributes:
        source: name of the source, for reports.
        genes: every gene the file mentions, also those without an edge that is strong enough.
        rows: number of each edge's first gene, smaller than that of its second.
        cols: number of each edge's second gene.
        scores: confidence of each edge, in the file's units (STRING: 0 to 1000); 1000 where the file has
            none.
    """

    source: str
    genes: tuple[str, ...]
    rows: Int32[np.ndarray, " edges"]
    cols: Int32[np.ndarray, " edges"]
    scores: Float32[np.ndarray, " edges"]


@dataclass(frozen=True)
class Network:
    """A network laid over a gene list.

    Attributes:
        genes: the gene list, in the order of rows and columns.
        matrix: 1 where two genes interact; symmetric, with zeros on the diagonal.
        mask: genes that the source knows; the others' rows are empty because nothing is known.
        coverage: how many genes and perturbed genes the source knows.
    """

    genes: tuple[str, ...]
    matrix: sp.csr_matrix
    mask: Bool[np.ndarray, " genes"]
    coverage: Coverage


def read_ppi(path: str | os.PathLike, min_score: float | int = 700, info: str | os.PathLike | None = None) -> PPI:
    """Reads interactions, in pieces, so that STRING's whole file needs little memory.

    Two layouts, gz or not, separated by tabs, commas or spaces: STRING's ``protein.links`` with its
    ``protein.info``, and an edge list of two gene names and, in a third column or in one named
    combined_score, score or weight, a score. A header is recognised by a third field that is no number or,
    without a third, by a usual name in the first. An edge given more than once, in either direction, counts
    once with its highest score; self-loops are dropped.

    Args:
        path: the edges.
        min_score: lowest score kept; without meaning for a list without scores.
        info: STRING's table of protein identifiers and names, needed for its links.

    Raises:
        InputError: a file is absent, damaged or of another layout, STRING identifiers come without ``info``
            or are absent from it, or no edge reaches ``min_score``.
    """
    names = None if info is None else _protein_names(info)
    number: dict[str, int] = {}
    pieces: list[np.ndarray] = []
    best = -np.inf
    for first, second, scores in _chunks(path):
        codes = [_number(column, number, names, path) for column in (first, second)]
        best = max(best, float(scores.max(initial=-np.inf)))
        kept = (scores >= min_score) & (codes[0] != codes[1])
        pieces.append(_strongest(np.sort(np.stack(codes), axis=0)[:, kept], scores[kept]))
    edges = np.concatenate(pieces, axis=1)
    if not edges.shape[1]:
        hint = "pass min_score on the file's scale" if best < min_score else "it holds self-loops only"
        raise InputError(
            f"{path}: no edge between two genes reaches a score of {min_score:g} (highest {best:g}); {hint}"
        )
    edges = _strongest(edges[:2].astype(np.int64), edges[2])
    rows, cols = edges[:2].astype(np.int32)
    scores = np.where(np.isposinf(edges[2]), _FULL_SCORE, edges[2]).astype(np.float32)
    return PPI(source_name(path), tuple(number), rows, cols, scores)


def _strongest(pair: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Every pair once, with its highest score: ``[3, edges]``, sorted by pair."""
    order = np.lexsort((-scores, pair[1], pair[0]))
    pair, scores = pair[:, order], scores[order]
    new = np.ones(len(scores), bool)
    new[1:] = (np.diff(pair, axis=1) != 0).any(axis=0)
    return np.vstack([pair[:, new], scores[new]]).astype(np.float64)


def _number(
    column: pd.Series, number: dict[str, int], names: dict[str, str] | None, path: str | os.PathLike
) -> np.ndarray:
    """Numbers of names, new ones getting the next; identifiers are turned to names first."""
    place, unique = pd.factorize(column)
    labels = [str(label) for label in unique]
    if "" in labels:
        raise InputError(f"{path}: an edge lacks a gene; remove or complete it")
    if names is not None:
        unknown = [label for label in labels if label not in names]
        if unknown:
            raise InputError(f"{path}: the info file does not name {some(unknown)}; take links and info of one release")
        labels = [names[label] for label in labels]
    elif labels and all(_STRING_ID.fullmatch(label) for label in labels):
        raise InputError(
            f"{path} holds STRING identifiers such as {labels[0]}; give STRING's protein.info file as info"
        )
    return np.array([number.setdefault(label, len(number)) for label in labels], np.int64)[place]


def _protein_names(info: str | os.PathLike) -> dict[str, str]:
    """STRING's protein identifiers and the names it prefers; an identifier without a name keeps itself."""
    table = read_table(info)
    identifier = str(table.columns[0])
    if identifier.lstrip("#") not in ("string_protein_id", "protein_external_id") or "preferred_name" not in table:
        raise InputError(
            f"{info} is not STRING's protein.info: its columns are {', '.join(map(str, table.columns[:4]))}, "
            "not string_protein_id, preferred_name, …"
        )
    pairs = zip(table[identifier], table["preferred_name"], strict=True)
    return {protein: name or protein for protein, name in pairs}


def _chunks(path: str | os.PathLike) -> Iterator[tuple[pd.Series, pd.Series, np.ndarray]]:
    """Pieces of an edge list: names of both ends and scores (float64)."""
    line = first_line(path)
    mark = separator(line, path)
    fields = [field.strip().strip('"').lstrip("#") for field in line.split(mark)]
    header = not is_number(fields[2]) if len(fields) > 2 else fields[0].lower() in _FIRST
    column = None
    if header and len(fields) > 2:
        column = next((fields.index(name) for name in _SCORES if name in fields), None)
        if column is None:
            raise InputError(f"{path}: no column is named {' or '.join(_SCORES)}; it has {', '.join(fields)}")
    elif len(fields) > 2:
        column = 2
    used = [0, 1] if column is None else [0, 1, column]
    types = {0: str, 1: str} | ({} if column is None else {column: np.float64})
    quoting = csv.QUOTE_MINIMAL if mark == "," else csv.QUOTE_NONE
    with reading(path), open_text(path) as handle:
        try:
            reader = pd.read_csv(
                handle, sep=mark, header=None, skiprows=int(header), usecols=used, dtype=types, engine="c",
                na_filter=False, quoting=quoting, chunksize=_CHUNK,
            )  # fmt: skip
            for piece in reader:
                scores = np.full(len(piece), np.inf) if column is None else piece[column].to_numpy()
                if np.isnan(scores).any():
                    raise InputError(f"{path}: a score is not a number near line {int(piece.index[0]) + 2}")
                yield piece[0], piece[1], scores
        except pd.errors.EmptyDataError:
            raise InputError(f"{path} holds no edges below its header") from None
        except pd.errors.ParserError as error:
            raise InputError(f"{path} does not read as an edge list: {str(error).strip()}") from None
        except ValueError as error:
            if isinstance(error, InputError | UnicodeDecodeError):
                raise
            raise InputError(f"{path}: a score is not a number ({error})") from None


def adjacency(
    ppi: PPI, genes: Collection[str], aliases: AliasTable | None = None, targets: Collection[str] = ()
) -> Network:
    """Lays a network over a gene list by name.

    Args:
        ppi: the network.
        genes: the gene list.
        aliases: other names, tried where a gene is not found under its own.
        targets: perturbed genes, for the coverage report; they need not be in the list.

    Raises:
        InputError: a gene is listed twice, or the network knows none of the genes.
    """
    genes = tuple(genes)
    refuse_duplicates(genes, "the gene list")
    aliases = aliases or AliasTable.empty()
    node = {name: i for i, name in enumerate(ppi.genes)}
    match = aliases.match(genes, node)
    mask = np.array([name is not None for name in match.names], bool)
    if not mask.any():
        raise InputError(
            f"{ppi.source} knows none of the {len(genes):,} genes ({some(genes, 3)}); "
            f"its own names are like {some(ppi.genes, 3)}: check that both use gene symbols"
        )
    place = np.full(len(ppi.genes), -1)
    place[[node[name] for name in match.names if name is not None]] = np.flatnonzero(mask)
    rows, cols = place[ppi.rows], place[ppi.cols]
    inside = (rows >= 0) & (cols >= 0)
    rows, cols = rows[inside], cols[inside]
    both = np.concatenate([rows, cols]), np.concatenate([cols, rows])
    matrix = sp.csr_matrix((np.ones(len(both[0]), np.float32), both), shape=(len(genes), len(genes)))
    wanted = tuple(dict.fromkeys(targets))
    reached = aliases.resolve(wanted, node)
    coverage = Coverage.of(
        ppi.source,
        dict(zip(genes, mask.tolist(), strict=True)),
        {target: name is not None for target, name in zip(wanted, reached, strict=True)},
        match.renamed,
        match.ambiguous,
    )
    return Network(genes, matrix, mask, coverage)
