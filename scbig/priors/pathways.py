"""Gene sets: readers, and the membership matrix of those that fit a gene list."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from scbig.errors import InputError
from scbig.priors.aliases import AliasTable
from scbig.priors.coverage import Coverage
from scbig.priors.tables import open_text, read_table, reading, refuse_duplicates

__all__ = ["Pathways", "membership", "read_gene2go", "read_gene_ids", "read_gmt"]


@dataclass(frozen=True)
class Pathways:
    """Gene sets laid over a gene list.

    Attributes:
        names: the sets that were kept.
        genes: the gene list, in the order of the matrix's columns.
        matrix: membership ``[sets, genes]``, every row summing to 1, so that ``X @ matrix.T`` is the mean of
            members.
        coverage: which genes of the list are in a kept set.
    """

    names: tuple[str, ...]
    genes: tuple[str, ...]
    matrix: Float32[np.ndarray, "sets genes"]
    coverage: Coverage


def read_gmt(path: str | os.PathLike) -> dict[str, tuple[str, ...]]:
    """Reads a GMT file (gz too): per line a name, a description or identifier, and genes, separated by tabs.

    Sets that share a name are told apart by their second field: ``name (identifier)``. A gene listed twice in
    a set counts once. A set without genes stays, empty.

    Raises:
        InputError: the file is absent, damaged or empty, a line has fewer than two fields, or two sets share
            both name and identifier.
    """
    rows: list[tuple[str, str, tuple[str, ...]]] = []
    with reading(path), open_text(path) as handle:
        for number, line in enumerate(handle, 1):
            if not line.strip():
                continue
            fields = [field.strip() for field in line.rstrip("\r\n").split("\t")]
            if len(fields) < 2 or not fields[0]:
                raise InputError(f"{path}: line {number} is not name, identifier and genes separated by tabs")
            rows.append((fields[0], fields[1], tuple(dict.fromkeys(gene for gene in fields[2:] if gene))))
    if not rows:
        raise InputError(f"{path} holds no gene sets")
    count = Counter(name for name, _, _ in rows)
    sets: dict[str, tuple[str, ...]] = {}
    for name, identifier, genes in rows:
        label = f"{name} ({identifier})" if count[name] > 1 else name
        if label in sets:
            raise InputError(f"{path} holds the gene set {label} twice; remove one")
        sets[label] = genes
    return sets


def read_gene_ids(path: str | os.PathLike, column: str = "entrez") -> dict[str, str]:
    """Reads identifiers of genes from a table with a column ``symbol``: identifier to symbol.

    Rows without an identifier are passed over; of several symbols with one identifier the first counts.

    Args:
        path: table with a header, gz too.
        column: which identifier, such as ``entrez`` or ``ensgene``.

    Raises:
        InputError: the file is absent or damaged, lacks a column, or no row has the identifier.
    """
    table = read_table(path, ("symbol", column))
    ids: dict[str, str] = {}
    for symbol, identifier in zip(table["symbol"], table[column], strict=True):
        if identifier and symbol:
            ids.setdefault(identifier, symbol)
    if not ids:
        raise InputError(f"{path}: its column {column} is empty")
    return ids


def read_gene2go(
    path: str | os.PathLike, gene_ids: Mapping[str, str], tax_id: str = "9606"
) -> dict[str, tuple[str, ...]]:
    """Reads NCBI's gene2go: GO term to the symbols annotated with it, in the file's order.

    Annotations qualified by NOT are left out, as are other species and genes absent from ``gene_ids``. Terms
    are not propagated to their ancestors.

    Args:
        path: gene2go, gz too, with its header line ``#tax_id GeneID GO_ID ...``.
        gene_ids: Entrez identifier to symbol, see :func:`read_gene_ids`.
        tax_id: species.

    Raises:
        InputError: the file is absent, damaged or not gene2go, or nothing in it concerns the species and
            genes.
    """
    terms: dict[str, dict[str, None]] = defaultdict(dict)
    with reading(path), open_text(path) as handle:
        header = handle.readline().rstrip("\r\n").lstrip("#").split("\t")
        lacking = {"tax_id", "GeneID", "GO_ID", "Qualifier"} - set(header)
        if lacking:
            raise InputError(f"{path} is not gene2go: its first line lacks {', '.join(sorted(lacking))}")
        species, gene, term, qualifier = (header.index(n) for n in ("tax_id", "GeneID", "GO_ID", "Qualifier"))
        for number, line in enumerate(handle, 2):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != len(header):
                raise InputError(f"{path}: line {number} has {len(fields)} fields, the header {len(header)}")
            # Every word of the qualifier counts: NOT may stand before a relation ("NOT involved_in") or
            # alone.
            negated = "NOT" in fields[qualifier].replace("|", " ").split()
            if fields[species] == tax_id and not negated and fields[gene] in gene_ids:
                terms[fields[term]][gene_ids[fields[gene]]] = None
    if not terms:
        raise InputError(f"{path} annotates none of the {len(gene_ids):,} genes given for species {tax_id}")
    return {term: tuple(genes) for term, genes in terms.items()}


def membership(
    gene_sets: Mapping[str, Collection[str]],
    genes: Collection[str],
    min_genes: int = 10,
    max_genes: int = 500,
    aliases: AliasTable | None = None,
    targets: Collection[str] = (),
    source: str = "pathways",
) -> Pathways:
    """Lays gene sets over a gene list and keeps those with a fitting number of genes in it.

    Args:
        gene_sets: genes of every set.
        genes: the gene list.
        min_genes: fewest genes of a set within the list.
        max_genes: most genes of a set within the list.
        aliases: other names of genes, tried where a gene is in no set under its own.
        targets: perturbed genes, for the coverage report.
        source: name for the coverage report.

    Returns:
        The kept sets in their order, with a matrix ``[sets, genes]`` of rows that sum to 1.

    Raises:
        InputError: a gene is listed twice, or no set has between ``min_genes`` and ``max_genes`` genes of the
            list.
    """
    genes = tuple(genes)
    refuse_duplicates(genes, "the gene list")
    aliases = aliases or AliasTable.empty()
    known = set().union(*gene_sets.values()) if gene_sets else set()
    match = aliases.match(genes, known)
    place = {name: i for i, name in enumerate(match.names) if name is not None}
    columns = {name: sorted({place[g] for g in members if g in place}) for name, members in gene_sets.items()}
    kept = {name: where for name, where in columns.items() if min_genes <= len(where) <= max_genes}
    if not kept:
        largest = max(map(len, columns.values()), default=0)
        raise InputError(
            f"{source}: none of {len(gene_sets):,} gene sets has {min_genes} to {max_genes} "
            f"of the {len(genes):,} genes (the largest overlap is {largest}); "
            "check that both use gene symbols, or change the limits"
        )
    matrix = np.zeros((len(kept), len(genes)), np.float32)
    for row, where in enumerate(kept.values()):
        matrix[row, where] = 1.0 / len(where)
    member = matrix.any(axis=0)
    members = set().union(*(gene_sets[name] for name in kept))
    reached = aliases.match(tuple(dict.fromkeys(targets)), known)
    coverage = Coverage.of(
        source,
        dict(zip(genes, member.tolist(), strict=True)),
        {t: name in members for t, name in zip(dict.fromkeys(targets), reached.names, strict=True)},
        [pair for pair in match.renamed if pair[1] in members],
        match.ambiguous,
    )
    return Pathways(tuple(kept), genes, matrix, coverage)
