"""The tokens of the adapter baseline: modules of measured genes, what they look like, and who is whose neighbour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from scbig.data.conditions import genes_of
from scbig.modules.spherical import normalize, spherical_kmeans
from scbig.rng import generator

__all__ = ["Tokens", "build_tokens", "gene_vectors"]

_RESPONSE_DIMS = 30  # of the genes' vectors of what they respond to


@dataclass(frozen=True)
class Tokens:
    """Modules of genes as tokens.

    Attributes:
        module: of each measured gene.
        basis: orthonormal patterns over genes, ``[tokens × patterns, genes]``: of each module the uniform one, then the
            leading components of the training effects of its genes; rows of zeros where a module has fewer genes.
        n_patterns: per module.
        vectors: mean of the unit vectors of the module's genes, ``[tokens, dims]``.
        known: modules of which any gene has a vector.
        centre: mean of ``vectors`` over known modules, which similarities are taken from.
    """

    module: Int[np.ndarray, " genes"]
    basis: Float[np.ndarray, "patterns genes"]
    n_patterns: int
    vectors: Float[np.ndarray, "tokens dims"]
    known: Bool[np.ndarray, " tokens"]
    centre: Float[np.ndarray, " dims"]

    def touch(self, condition: str, vectors: Mapping[str, np.ndarray]) -> Float[np.ndarray, " tokens"]:
        """How alike the perturbed genes are to each module, standardised over modules and added up over genes."""
        out = np.zeros(len(self.vectors), np.float32)
        tokens = normalize((self.vectors - self.centre) * self.known[:, None])
        for gene in genes_of(condition):
            if gene in vectors:
                cosine = tokens @ normalize((vectors[gene] - self.centre)[None])[0]
                out += np.where(self.known, (cosine - cosine.mean()) / max(cosine.std(), 1e-6), 0.0).astype(np.float32)
        return out


def gene_vectors(
    effects: Float[np.ndarray, "rows genes"], genes: tuple[str, ...], given: Mapping[str, np.ndarray] | None
) -> tuple[dict[str, np.ndarray], Float[np.ndarray, "genes dims"]]:
    """Unit vectors of genes by name: those given, else of what they respond to; and of the latter for all genes.

    Args:
        effects: of the training conditions, less their mean.
        genes: of the columns.
        given: vectors of genes, measured or perturbed, from outside; None where there are none.
    """
    _, size, right = np.linalg.svd(effects, full_matrices=False)
    response = normalize((right[:_RESPONSE_DIMS] * size[:_RESPONSE_DIMS, None]).T)
    if given is None:
        return dict(zip(genes, response, strict=True)), response
    return {gene: normalize(np.asarray(v)[None])[0] for gene, v in given.items() if np.linalg.norm(v) > 0}, response


def build_tokens(
    effects: Float[np.ndarray, "rows genes"],
    genes: tuple[str, ...],
    vectors: Mapping[str, np.ndarray],
    response: Float[np.ndarray, "genes dims"],
    n_tokens: int,
    n_patterns: int,
    seed: int,
) -> Tokens:
    """Modules of genes that are alike in their vectors and respond alike in training, in equal parts.

    Args:
        effects: of the training conditions, less their mean.
        genes: of the columns.
        vectors: of genes by name, of length 1.
        response: of every gene, of length 1.
        n_tokens: modules; fewer where there are fewer genes.
        n_patterns: per module, the uniform one among them.
        seed: of the clustering.
    """
    n, dims = len(genes), len(next(iter(vectors.values())))
    n_tokens = min(n_tokens, n)
    told = np.array([gene in vectors for gene in genes])
    own = np.stack([vectors.get(gene, np.zeros(dims, np.float32)) for gene in genes])
    joined = normalize(np.concatenate([own, response], axis=1))
    random = generator(seed, "tokens of the adapter")
    # Genes that neither know anything of go to the modules in turn.
    label = random.permutation(n) % n_tokens
    some = np.linalg.norm(joined, axis=1) > 0
    if some.sum() > n_tokens:
        label[some] = spherical_kmeans(joined[some], n_tokens, random, n_init=1, max_iterations=20)
    basis = np.zeros((n_tokens, n_patterns, n))
    token, known = np.zeros((n_tokens, dims), np.float32), np.zeros(n_tokens, bool)
    for k in range(n_tokens):
        members = np.flatnonzero(label == k)
        if not len(members):
            continue
        basis[k, 0, members] = 1.0 / np.sqrt(len(members))
        rest = effects[:, members] - effects[:, members].mean(axis=1, keepdims=True)
        _, size, right = np.linalg.svd(rest.astype(np.float64), full_matrices=False)
        kept = int((size[: n_patterns - 1] > 1e-6 * max(size[0], 1e-12)).sum())
        basis[k, 1 : kept + 1, members] = right[:kept].T
        known[k] = told[members].any()
        if known[k]:
            token[k] = own[members[told[members]]].mean(axis=0)
    centre = token[known].mean(axis=0) if known.any() else np.zeros(dims, np.float32)
    return Tokens(label, basis.reshape(-1, n).astype(np.float32), n_patterns, token, known, centre)
