"""What a network and gene sets say of a list of genes, exactly: vectors whose inner products are the whole profiles'.

A factorisation of the whole network keeps what matters to all 16,000 genes. A perturbation screen asks of a thousand
which of them are in the same complex: their full profiles (interaction partners, random walks, memberships) answer
that, and the inner products of a thousand profiles fit into a thousand dimensions without any loss.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import scipy.sparse as sp

from scbig.errors import InputError, some
from scbig.priors.aliases import AliasTable
from scbig.priors.embeddings import Embedding, make_embedding
from scbig.priors.ppi import PPI

__all__ = ["membership_profiles", "neighbour_profiles", "walk_profiles"]


def neighbour_profiles(ppi: PPI, genes: Collection[str], aliases: AliasTable | None = None) -> Embedding:
    """Whom a gene interacts with: scores of its partners (1 for itself), rare partners weighing more.

    A partner counts by its score times the logarithm of the inverse share of genes that interact with it: a hub says
    little. Genes with the same partners, as members of one complex, have cosines near 1.

    Args:
        ppi: the network.
        genes: the genes that vectors are wanted of.
        aliases: other names of theirs.

    Raises:
        InputError: the network knows none of the genes.
    """
    names, at, matrix = _placed(ppi, genes, aliases)
    degree = np.diff(matrix.indptr)
    rarity = np.log(len(ppi.genes) / np.maximum(degree, 1))
    rows = (matrix[at] + sp.identity(len(ppi.genes), format="csr")[at]) @ sp.diags(rarity)
    return _exact(sp.csr_matrix(rows), names, f"{ppi.source} neighbours")


def walk_profiles(
    ppi: PPI, genes: Collection[str], aliases: AliasTable | None = None, restart: float | int = 0.5
) -> Embedding:
    """Where random walks from a gene end: log of the chance of each other gene, over that of chance alone.

    The walk follows edges in proportion to their scores and returns to its start with probability ``restart`` at each
    step. Below chance counts as 0.

    Args:
        ppi: the network.
        genes: the genes that vectors are wanted of.
        aliases: other names of theirs.
        restart: the larger, the nearer the walk stays.

    Raises:
        InputError: the network knows none of the genes, or a chance that is not between 0 and 1.
    """
    if not 0 < restart < 1:
        raise InputError(f"a walk returns with a probability between 0 and 1, not {restart:g}")
    names, at, matrix = _placed(ppi, genes, aliases)
    strength = np.asarray(matrix.sum(axis=1)).ravel()
    step = (sp.diags(1 / np.maximum(strength, 1e-12)) @ matrix).T.tocsr().astype(np.float32)
    start = np.zeros((matrix.shape[0], len(at)), np.float32)
    start[at, np.arange(len(at))] = 1
    walk = start
    for _ in range(int(np.ceil(np.log(1e-4) / np.log(1 - restart)))):
        walk = (1 - restart) * (step @ walk) + restart * start
    walk = walk / walk.sum(axis=0)
    above = np.log(np.maximum(walk * matrix.shape[0], 1.0), dtype=np.float64)
    return _exact(above.T, names, f"{ppi.source} walks")


def membership_profiles(
    gene_sets: Mapping[str, Collection[str]],
    genes: Collection[str],
    aliases: AliasTable | None = None,
    source: str = "gene sets",
) -> Embedding:
    """Which sets a gene is in, a set weighing the logarithm of its rarity, without a decomposition.

    Args:
        gene_sets: genes of every set; sets of one gene say nothing and are left out.
        genes: the genes that vectors are wanted of.
        aliases: other names of theirs.
        source: name of the embedding.

    Raises:
        InputError: no set holds any of the genes.
    """
    sets = [frozenset(members) for _, members in sorted(gene_sets.items()) if len(set(members)) > 1]
    everyone = frozenset().union(*sets)
    found = _known(genes, dict.fromkeys(everyone, 0), aliases, source)
    names, at = list(found), {member: i for i, member in enumerate(found.values())}
    rows, columns, values = [], [], []
    for column, members in enumerate(sets):
        weight = np.log(len(everyone) / len(members))
        for member in sorted(members & at.keys()):
            rows.append(at[member])
            columns.append(column)
            values.append(weight)
    matrix = sp.csr_matrix((values, (rows, columns)), shape=(len(at), len(sets)))
    return _exact(matrix, names, source)


def _placed(
    ppi: PPI, genes: Collection[str], aliases: AliasTable | None
) -> tuple[list[str], np.ndarray, sp.csr_matrix]:
    """Names that have an edge, their places in the network, and the network with scores as parts of the highest."""
    n = len(ppi.genes)
    both = np.concatenate([ppi.rows, ppi.cols]), np.concatenate([ppi.cols, ppi.rows])
    scores = ppi.scores.astype(np.float64) / max(float(ppi.scores.max(initial=0.0)), 1e-12)
    matrix = sp.csr_matrix((np.tile(scores, 2), both), shape=(n, n))
    linked = {gene: i for i, gene in enumerate(ppi.genes) if matrix.indptr[i + 1] > matrix.indptr[i]}
    found = _known(genes, linked, aliases, ppi.source)
    return list(found), np.array([linked[name] for name in found.values()]), matrix


def _known(genes: Collection[str], there: Mapping[str, int], aliases: AliasTable | None, source: str) -> dict[str, str]:
    """The name under which the source knows each gene that it knows."""
    genes = list(dict.fromkeys(genes))
    match = (aliases or AliasTable.empty()).match(genes, there)
    found = {gene: name for gene, name in zip(genes, match.names, strict=True) if name is not None}
    if not found:
        raise InputError(f"{source} knows none of the {len(genes):,} genes ({some(genes, 3)})")
    return found


def _exact(rows: np.ndarray | sp.csr_matrix, names: list[str], source: str) -> Embedding:
    """Vectors with the inner products of the rows at length 1, by the eigenvectors of their matrix."""
    size = np.sqrt(np.asarray((rows.multiply(rows) if sp.issparse(rows) else rows * rows).sum(axis=1)).ravel())
    kept = size > 0
    gram = rows[kept] @ rows[kept].T
    gram = np.asarray(gram.todense() if sp.issparse(gram) else gram) / np.outer(size[kept], size[kept])
    values, vectors = np.linalg.eigh(gram)
    real = values > 1e-9 * values[-1]
    vectors = vectors[:, real][:, ::-1]
    extreme = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    vectors = vectors * np.where(extreme < 0, -1.0, 1.0) * np.sqrt(values[real][::-1])
    return make_embedding(source, [n for n, k in zip(names, kept, strict=True) if k], vectors, source)
