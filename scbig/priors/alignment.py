"""Embeddings laid over a gene list, by name, with a mask for genes that have none."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32

from scbig.errors import InputError, some
from scbig.priors.aliases import AliasTable
from scbig.priors.coverage import Coverage
from scbig.priors.embeddings import Embedding, read_embedding
from scbig.priors.tables import refuse_duplicates

__all__ = ["Aligned", "align", "concatenate", "load_semantic"]


@dataclass(frozen=True)
class Aligned:
    """Vectors of a gene list.

    Attributes:
        genes: the gene list, in the order of the rows.
        vectors: one row per gene; zeros where ``mask`` is False, which say nothing.
        mask: genes that have a vector.
        coverage: how many genes and perturbed genes have one.
    """

    genes: tuple[str, ...]
    vectors: Float32[np.ndarray, "genes dims"]
    mask: Bool[np.ndarray, " genes"]
    coverage: Coverage


def align(
    embedding: Embedding,
    genes: Collection[str],
    aliases: AliasTable | None = None,
    targets: Collection[str] = (),
) -> Aligned:
    """Lays an embedding over a gene list by name.

    A vector of zeros has no direction and says nothing about its gene, which counts as missing.

    Args:
        embedding: vectors of named genes.
        genes: the gene list.
        aliases: other names, tried where a gene is not found under its own.
        targets: perturbed genes, for the coverage report; they need not be in the list.

    Raises:
        InputError: a gene is listed twice, or the embedding knows none of the genes.
    """
    genes = tuple(genes)
    refuse_duplicates(genes, "the gene list")
    aliases = aliases or AliasTable.empty()
    useful = embedding.vectors.any(axis=1)
    row = {name: i for i, name in enumerate(embedding.genes) if useful[i]}
    match = aliases.match(genes, row)
    rows = np.array([-1 if name is None else row[name] for name in match.names], np.int64)
    mask = rows >= 0
    if not mask.any():
        raise InputError(
            f"{embedding.source} knows none of the {len(genes):,} genes ({some(genes, 3)}); "
            f"its own names are like {some(embedding.genes, 3)}: check that both use gene symbols"
        )
    vectors = np.zeros((len(genes), embedding.vectors.shape[1]), np.float32)
    vectors[mask] = embedding.vectors[rows[mask]]
    wanted = tuple(dict.fromkeys(targets))
    reached = aliases.resolve(wanted, row)
    coverage = Coverage.of(
        embedding.source,
        dict(zip(genes, mask.tolist(), strict=True)),
        {target: name is not None for target, name in zip(wanted, reached, strict=True)},
        match.renamed,
        match.ambiguous,
    )
    return Aligned(genes, vectors, mask, coverage)


def concatenate(sources: Sequence[Aligned]) -> Aligned:
    """Joins several sources into one vector per gene, in which every source weighs the same.

    Every source's rows are scaled to length 1, set side by side, and the row is scaled to length 1 again. A
    source that lacks a gene contributes zeros to it, so the gene is described by the other sources alone; the
    cosine between two genes is then the mean of their cosines where both have all sources. A gene counts as
    known where any source knows it.

    Raises:
        InputError: there are no sources, or they are aligned to different gene lists.
    """
    if not sources:
        raise InputError("no embedding to join; name at least one")
    first = sources[0]
    for other in sources[1:]:
        if other.genes != first.genes:
            raise InputError(
                f"{first.coverage.source} and {other.coverage.source} are aligned to different gene lists; "
                "align both to one"
            )
    joined = _unit(np.concatenate([_unit(each.vectors) for each in sources], axis=1))
    mask = np.logical_or.reduce([each.mask for each in sources])
    missing = set.intersection(*(set(each.coverage.missing_targets) for each in sources))
    names = [name for each in sources for name in each.coverage.missing_targets]
    n_targets = max(each.coverage.n_targets for each in sources)
    coverage = Coverage(
        source=" + ".join(each.coverage.source for each in sources),
        n_genes=len(first.genes),
        n_found=int(mask.sum()),
        n_targets=n_targets,
        n_targets_found=n_targets - len(missing),
        missing=tuple(gene for gene, known in zip(first.genes, mask, strict=True) if not known),
        missing_targets=tuple(name for name in dict.fromkeys(names) if name in missing),
        renamed=tuple(dict.fromkeys(pair for each in sources for pair in each.coverage.renamed)),
        ambiguous=tuple(
            dict.fromkeys(
                gene for each in sources for gene in each.coverage.ambiguous if not mask[first.genes.index(gene)]
            )
        ),
    )
    return Aligned(first.genes, joined, mask, coverage)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; rows of zeros stay."""
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norm, out=np.zeros_like(vectors), where=norm > 0)


def load_semantic(
    folder: str | os.PathLike,
    files: Sequence[str],
    genes: Collection[str],
    aliases: AliasTable | None = None,
    targets: Collection[str] = (),
) -> Aligned:
    """Reads embeddings from a folder, aligns each to a gene list and joins them; see :func:`concatenate`.

    Raises:
        InputError: as :func:`read_embedding`, :func:`align` and :func:`concatenate`.
    """
    return concatenate([align(read_embedding(Path(folder, name)), genes, aliases, targets) for name in files])
