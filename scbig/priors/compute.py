"""Embeddings computed from raw resources, for users who have no file of them.

Every function is deterministic: solvers start from the given seed, and each column's sign is fixed so that
its entry of largest size is positive. Genes of which a resource says nothing are left out, not given zeros.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from scbig.errors import InputError, some
from scbig.priors.embeddings import Embedding, make_embedding
from scbig.priors.ppi import PPI
from scbig.priors.tables import first_line, open_text, read_table, reading, refuse_duplicates, separator
from scbig.rng import generator

__all__ = [
    "coexpression",
    "embed_gene_sets",
    "embed_smiles",
    "embed_texts",
    "factorise_network",
    "read_smiles",
    "read_table_text",
    "read_tissue",
    "tissue_profile",
]

_BLOCK = 1024  # rows of the NetMF matrix that are dense at once


def read_table_text(path: str | os.PathLike, column: str | None = None) -> dict[str, str]:
    """Reads texts about genes: a table with a header, symbols in its first column (gz too).

    Args:
        path: the table.
        column: column of the texts; the second where None.

    Raises:
        InputError: the file is absent or damaged, lacks the column, or lists a gene twice.
    """
    table = read_table(path)
    if column is None:
        if table.shape[1] < 2:
            raise InputError(f"{path} has one column; symbols and texts are needed")
        column = str(table.columns[1])
    if column not in table:
        raise InputError(f"{path} has no column {column}; it has {', '.join(map(str, table.columns))}")
    names = table.iloc[:, 0].tolist()
    refuse_duplicates(names, str(path))
    return dict(zip(names, table[column], strict=True))


def read_tissue(path: str | os.PathLike) -> pd.DataFrame:
    """Reads expression per tissue: a table (gz too) with a header, symbols first, then a column per tissue.

    Returns:
        A frame of float64, indexed by symbol, a column per tissue.

    Raises:
        InputError: the file is absent or damaged, lists a gene twice, or holds something that is no finite
            number.
    """
    table = read_table(path)
    table = table.set_index(table.columns[0])
    refuse_duplicates(table.index.tolist(), str(path))
    numbers = table.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    rows, columns = np.nonzero(~np.isfinite(numbers.to_numpy()))
    if rows.size:
        text = table.iat[rows[0], columns[0]]
        raise InputError(
            f"{path}: '{text}' for {table.index[rows[0]]} in {table.columns[columns[0]]} is no finite number"
        )
    return numbers


def read_smiles(path: str | os.PathLike) -> dict[str, str]:
    """Reads SMILES of drugs: a table of name, SMILES and anything else, with or without a header (gz too).

    A first line whose second field contains the word smiles is a header.

    Raises:
        InputError: the file is absent or damaged, gives a drug two SMILES, or a row lacks one.
    """
    mark = separator(first_line(path), path)
    with reading(path), open_text(path) as handle:
        rows = [row for row in csv.reader(handle, delimiter=mark) if row]
    if len(rows[0]) > 1 and "smiles" in rows[0][1].lower():
        rows = rows[1:]
    for number, row in enumerate(rows, 1):
        if len(row) < 2 or not row[0].strip() or not row[1].strip():
            raise InputError(f"{path}: row {number} ({row[0]}) lacks a name or a SMILES")
    pairs = list(dict.fromkeys((row[0].strip(), row[1].strip()) for row in rows))
    refuse_duplicates([name for name, _ in pairs], str(path))
    return dict(pairs)


def embed_texts(texts: Mapping[str, str], dim: int = 256, seed: int = 0, source: str = "texts") -> Embedding:
    """Latent semantic analysis of texts: TF-IDF of words and word pairs, then a truncated SVD.

    Args:
        texts: text of every gene. Genes whose text has no word that occurs in two texts are left out.
        dim: dimensions.
        seed: of the SVD's start.
        source: name of the embedding.

    Raises:
        InputError: there are too few texts or words for ``dim`` dimensions.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    names = list(texts)
    vectorizer = TfidfVectorizer(
        stop_words="english", sublinear_tf=True, min_df=2, ngram_range=(1, 2), dtype=np.float64
    )
    try:
        matrix = vectorizer.fit_transform([texts[name] for name in names])
    except ValueError as error:
        # scikit-learn's words for no text, stop words only, or no word in two texts.
        raise InputError(f"{source}: the {len(names)} texts have no words in common ({error})") from None
    return _decompose(sp.csr_matrix(matrix), names, dim, seed, source)


def embed_gene_sets(
    gene_sets: Mapping[str, Collection[str]], dim: int = 128, seed: int = 0, source: str = "gene sets"
) -> Embedding:
    """Truncated SVD of gene set membership, weighted by TF-IDF so that small sets count more.

    Args:
        gene_sets: genes of every set, such as GO terms or pathways; sets of one gene say nothing and are left
            out.
        dim: dimensions.
        seed: of the SVD's start.
        source: name of the embedding.

    Raises:
        InputError: there are too few genes or sets for ``dim`` dimensions.
    """
    from sklearn.feature_extraction.text import TfidfTransformer

    sets = [members for members in map(set, gene_sets.values()) if len(members) > 1]
    names = sorted(set().union(*sets))
    if not names:
        raise InputError(f"{source}: no set has two genes")
    number = {name: i for i, name in enumerate(names)}
    rows = np.array([number[gene] for members in sets for gene in sorted(members)])
    columns = np.repeat(np.arange(len(sets)), [len(members) for members in sets])
    matrix = sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(len(names), len(sets)))
    return _decompose(sp.csr_matrix(TfidfTransformer().fit_transform(matrix)), names, dim, seed, source)


def embed_smiles(smiles: Mapping[str, str], dim: int = 1024, source: str = "smiles") -> Embedding:
    """Crude vectors of drugs: hashed counts of substrings of SMILES, 1 to 4 characters, scaled to length 1.

    This sees spelling, not chemistry: the same molecule written otherwise gets another vector. Give a file of
    fingerprints (2,048 bits, say, as ``.npz``) instead wherever you can make one.

    Args:
        smiles: SMILES of every drug.
        dim: dimensions of the hash table.
        source: name of the embedding.

    Raises:
        InputError: there are no drugs, or a SMILES is empty.
    """
    from sklearn.feature_extraction.text import HashingVectorizer

    empty = [name for name, text in smiles.items() if not text.strip()]
    if empty or not smiles:
        raise InputError(f"{source}: no SMILES for {some(empty) if empty else 'any drug'}")
    vectorizer = HashingVectorizer(analyzer="char", lowercase=False, ngram_range=(1, 4), n_features=dim, norm="l2")
    matrix = vectorizer.transform(smiles.values()).toarray()
    return make_embedding(source, list(smiles), matrix, source)


def tissue_profile(table: pd.DataFrame, source: str = "tissue") -> Embedding:
    """Where a gene is expressed: log expression per tissue, each tissue standardised over genes.

    Args:
        table: log expression, a row per gene, a column per tissue.
        source: name of the embedding.

    Raises:
        InputError: a gene is listed twice, a value is NaN or infinite, or a tissue is the same for all genes.
    """
    values = table.to_numpy(np.float64)
    spread = values.std(axis=0) if len(values) else np.zeros(values.shape[1])
    flat = [str(name) for name, s in zip(table.columns, spread, strict=True) if s == 0]
    if flat:
        raise InputError(f"{source}: {some(flat)} tells no genes apart; drop it")
    return make_embedding(source, table.index.astype(str).tolist(), (values - values.mean(axis=0)) / spread, source)


def coexpression(
    X: Float[np.ndarray, "cells genes"] | sp.spmatrix | sp.sparray,
    genes: Collection[str],
    dim: int = 50,
    seed: int = 0,
    source: str = "coexpression",
) -> Embedding:
    """Principal-component loadings of standardised expression; inner products approximate correlations.

    Give control cells of the training set only, so that nothing of a held-out condition is in the vectors.

    Args:
        X: log expression ``[cells, genes]``, dense or sparse.
        genes: names of the columns. Genes that do not vary are left out.
        dim: dimensions; fewer where there are not as many cells or varying genes.
        seed: of the solver's start.
        source: name of the embedding.

    Raises:
        InputError: names and columns differ in number, there are fewer than three cells, or fewer than two
            genes vary.
    """
    names = np.asarray(list(genes), str)
    if X.shape[1] != len(names):
        raise InputError(f"{source}: {len(names):,} gene names for {X.shape[1]:,} columns")
    if X.shape[0] < 3:
        raise InputError(f"{source}: {X.shape[0]} control cells are too few; name embeddings in files instead")
    matrix = sp.csc_matrix(X, dtype=np.float64) if sp.issparse(X) else np.asarray(X, np.float64)
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    if isinstance(matrix, np.ndarray):
        spread = matrix.std(axis=0)
    else:
        square = np.asarray(matrix.multiply(matrix).mean(axis=0)).ravel()
        spread = np.sqrt(np.maximum(square - mean**2, 0))
    varying = spread > 1e-6 * np.maximum(np.abs(mean), 1e-6)
    if varying.sum() < 2:
        raise InputError(f"{source}: {int(varying.sum())} of {len(names):,} genes vary in these cells; two are needed")
    matrix, mean, spread = matrix[:, varying], mean[varying], spread[varying]
    loadings = _loadings(matrix, mean, spread, min(dim, *(n - 1 for n in matrix.shape)), seed)
    return make_embedding(source, names[varying].tolist(), _signed(loadings), source)


def _loadings(matrix, mean: np.ndarray, spread: np.ndarray, dim: int, seed: int) -> np.ndarray:
    """Right singular vectors of the standardised matrix times singular values over √cells."""
    from scipy.sparse.linalg import LinearOperator, svds

    n_cells, n_genes = matrix.shape

    # Centred without a dense copy: the mean is taken off the products.
    def forward(v: np.ndarray) -> np.ndarray:
        scaled = np.ravel(v) / spread
        return matrix @ scaled - mean @ scaled

    def backward(u: np.ndarray) -> np.ndarray:
        u = np.ravel(u)
        return (matrix.T @ u - mean * u.sum()) / spread

    operator = LinearOperator((n_cells, n_genes), matvec=forward, rmatvec=backward, dtype=np.float64)
    start = generator(seed, "coexpression").standard_normal(min(n_cells, n_genes))
    _, values, right = svds(operator, k=dim, v0=start)
    order = np.argsort(-values, kind="stable")
    return right[order].T * (values[order] / np.sqrt(n_cells))


def factorise_network(
    ppi: PPI, dim: int = 128, seed: int = 0, window: int = 10, rank: int = 256, negative: float = 1.0
) -> Embedding:
    """NetMF of a network: what DeepWalk's random walks converge to, factorised directly.

    With normalised adjacency D^-1/2 A D^-1/2 ≈ U Λ Uᵀ, the matrix of walks is
    M = vol / b · D^-1/2 U f(Λ) Uᵀ D^-1/2, f(λ) = (λ + … + λ^T) / T; the SVD of log max(M, 1) gives the
    vectors U_d √Σ_d (Qiu et al., Network embedding as matrix factorization, WSDM 2018, algorithm 4). Edges
    are not weighted.

    Args:
        ppi: the network. Genes without an edge are left out.
        dim: dimensions.
        seed: of the solvers' starts.
        window: longest walk T.
        rank: eigenpairs that stand for the network.
        negative: negative samples b per pair.

    Raises:
        InputError: there are too few genes for ``dim`` dimensions.
    """
    from scipy.sparse.linalg import eigsh

    n = len(ppi.genes)
    both = np.concatenate([ppi.rows, ppi.cols]), np.concatenate([ppi.cols, ppi.rows])
    matrix = sp.csr_matrix((np.ones(len(both[0])), both), shape=(n, n))
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    linked = degree > 0
    matrix, degree = matrix[linked][:, linked], degree[linked]
    names = [gene for gene, has in zip(ppi.genes, linked, strict=True) if has]
    if len(names) <= dim + 1:
        raise InputError(f"{ppi.source}: {len(names)} genes have an edge, too few for {dim} dimensions; lower dim")
    scale = sp.diags(1 / np.sqrt(degree))
    start = generator(seed, "network eigenpairs").standard_normal(len(names))
    # An approximation already: full precision would take seven times as long and change nothing.
    k = min(rank, len(names) - 2)
    values, vectors = eigsh(scale @ matrix @ scale, k=k, which="LA", v0=start, tol=1e-3)
    walks = np.mean([values**step for step in range(1, window + 1)], axis=0)
    # As in the paper: a negative sum comes of eigenvalues that walks damp out.
    half = vectors * np.sqrt(np.maximum(walks, 0)) / np.sqrt(degree)[:, None]
    half = half * np.sqrt(degree.sum() / negative)
    half = half.astype(np.float32)
    blocks = []
    for begin in range(0, len(names), _BLOCK):
        # Most entries are below 1 and vanish, so that the whole is kept sparse and never dense at once.
        block = half[begin : begin + _BLOCK] @ half.T
        block[block < 1] = 1
        blocks.append(sp.csr_matrix(np.log(block, out=block)))
    return _decompose(sp.csr_matrix(sp.vstack(blocks)), names, dim, seed, f"{ppi.source} network", power=0.5)


def _decompose(
    matrix: sp.csr_matrix, names: Sequence[str], dim: int, seed: int, source: str, power: float = 1.0
) -> Embedding:
    """U Σ^power of a truncated SVD, for rows that are not empty."""
    from sklearn.utils.extmath import randomized_svd

    filled = np.diff(matrix.indptr) > 0
    matrix = matrix[filled]
    names = [name for name, has in zip(names, filled, strict=True) if has]
    most = min(matrix.shape) - 1
    if not 1 <= dim <= most:
        raise InputError(
            f"{source}: {matrix.shape[0]} genes × {matrix.shape[1]} features give at most {most} dimensions, not {dim}"
        )
    state = np.random.RandomState(generator(seed, f"svd of {source}").integers(2**31))
    left, values, _ = randomized_svd(matrix, dim, n_iter=5, random_state=state, flip_sign=False)
    return make_embedding(source, names, _signed(left * values**power), source)


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Columns turned so that the entry of largest size is positive; a decomposition leaves the sign open."""
    extreme = vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])]
    return vectors * np.where(extreme < 0, -1.0, 1.0)
