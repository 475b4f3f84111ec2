"""A perturbation-conditioned adapter over tokens whose attention is masked by what is known of their similarity.

The idea is that of the adapter of PertAdapt (2025): frozen gene representations are made to depend on the perturbation by a
small network, in which a gene attends to the genes of similar function (Gene Ontology) alone. Tokens are whatever the
caller has: frozen gene embeddings, modules of genes, or a GCAE's module tokens of each cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.nn.attention import Mlp

__all__ = ["AdapterConfig", "MaskedAttention", "Neighbourhood", "PerturbationAdapter", "nearest", "shuffled"]

_DENSE = 512  # tokens up to which attention is computed over all pairs and masked, which is quicker than gathering


class Neighbourhood(NamedTuple):
    """Which tokens each token may attend to; a pytree of arrays.

    Attributes:
        index: places of the neighbours, the token itself first, ``[tokens, neighbours]``.
        known: which of these places are neighbours at all, ``[tokens, neighbours]``.
    """

    index: Int[Array | np.ndarray, "tokens neighbours"]
    known: Bool[Array | np.ndarray, "tokens neighbours"]


def nearest(vectors: Float[np.ndarray, "tokens dims"], known: Bool[np.ndarray, " tokens"], most: int) -> Neighbourhood:
    """Each token and the ``most`` others of largest cosine similarity; ties go to the first.

    Args:
        vectors: of the tokens, such as their annotations.
        known: tokens that have a vector. The others see themselves alone, and nothing sees them.
        most: neighbours beside the token itself, as far as there are so many.
    """
    size = np.linalg.norm(vectors, axis=1)
    known = known & (size > 0)
    unit = np.where(known[:, None], vectors / np.where(size > 0, size, 1.0)[:, None], 0.0)
    similarity = np.where(known[None, :] & known[:, None], unit @ unit.T, -np.inf)
    np.fill_diagonal(similarity, -np.inf)
    others = np.argsort(-similarity, axis=1, kind="stable")[:, : min(most, len(vectors) - 1)]
    found = np.isfinite(np.take_along_axis(similarity, others, axis=1))
    own = np.arange(len(vectors))[:, None]
    index = np.concatenate([own, np.where(found, others, own)], axis=1)
    return Neighbourhood(index.astype(np.int32), np.concatenate([np.ones_like(own, bool), found], axis=1))


def shuffled(neighbours: Neighbourhood, random: np.random.Generator) -> Neighbourhood:
    """The control of a mask: as many neighbours as before for each token, drawn from all other tokens at random."""
    index = np.asarray(neighbours.index).copy()
    n, width = index.shape
    for token in range(n):
        index[token, 1:] = random.permutation(np.delete(np.arange(n), token))[: width - 1]
    known = np.asarray(neighbours.known)
    return Neighbourhood(np.where(known, index, np.arange(n)[:, None]).astype(np.int32), known)


@dataclass(frozen=True)
class AdapterConfig:
    """The adapter's architecture."""

    width: int = 32
    heads: int = 4
    depth: int = 1
    dropout: float | int = 0.1


class MaskedAttention(nnx.Module):
    """Multi-head self-attention in which a token attends to its neighbours alone."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} does not divide over {heads} heads")
        self.heads = heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "rows tokens width"], neighbours: Neighbourhood | None = None
    ) -> Float[Array, "rows tokens width"]:
        """Attends from every token to its neighbours; to all tokens where there are no ``neighbours``."""
        split = (*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        query, key, value = (layer(x).reshape(split) for layer in (self.query, self.key, self.value))
        query = query / math.sqrt(split[-1])
        n = x.shape[1]
        if neighbours is None or n <= _DENSE:
            logits = jnp.einsum("rqhd,rkhd->rqhk", query, key)
            if neighbours is not None:
                mask = jnp.zeros((n, n), bool).at[jnp.arange(n)[:, None], neighbours.index].max(neighbours.known)
                logits = jnp.where(mask[None, :, None, :], logits, -jnp.inf)
            attended = jnp.einsum("rqhk,rkhd->rqhd", jax.nn.softmax(logits, axis=-1), value)
        else:
            index = jnp.asarray(neighbours.index)
            logits = jnp.einsum("rqhd,rqkhd->rqhk", query, key[:, index])
            logits = jnp.where(jnp.asarray(neighbours.known)[None, :, None, :], logits, -jnp.inf)
            attended = jnp.einsum("rqhk,rqkhd->rqhd", jax.nn.softmax(logits, axis=-1), value[:, index])
        return self.out(attended.reshape(x.shape))


class PerturbationAdapter(nnx.Module):
    """What a perturbation does to each token.

    Tokens are projected and modulated (FiLM) by the perturbation's embedding; the tokens that it acts on are marked; masked
    attention passes that on to their neighbours; a head that all tokens share reads the effect, from zero. What is learned
    on some tokens and perturbations thus holds for others, as far as they have similar neighbours.

    Args:
        config: the architecture.
        token_dims: of the tokens given.
        condition_dims: of the perturbation's embedding.
        n_out: numbers per token; 0 leaves the head away and gives the states.
        rngs: stream ``params`` for the initial weights.
    """

    def __init__(self, config: AdapterConfig, token_dims: int, condition_dims: int, n_out: int = 1, *, rngs: nnx.Rngs):
        width = config.width
        self.config = config
        self.enter = nnx.Linear(token_dims, width, rngs=rngs)
        self.film = nnx.Linear(condition_dims, 2 * width, rngs=rngs)
        self.mark = nnx.Linear(condition_dims, width, rngs=rngs)
        self.mark.bias[...] = nnx.initializers.normal(1.0)(rngs.params(), (width,))
        self.attention = nnx.List([MaskedAttention(width, config.heads, rngs=rngs) for _ in range(config.depth)])
        self.mlps = nnx.List([Mlp(width, 2, rngs=rngs) for _ in range(config.depth)])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2 * config.depth + 1)])
        self.dropout = nnx.Dropout(config.dropout)
        self.n_out = n_out
        if n_out:
            self.head = nnx.Linear(width, n_out, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "*rows tokens token_dims"],
        condition: Float[Array, "rows condition_dims"],
        touch: Float[Array, "rows tokens"] | None = None,
        neighbours: Neighbourhood | None = None,
        key: jax.Array | None = None,
    ) -> Float[Array, "rows tokens n_out"]:
        """Effects by token.

        Args:
            tokens: the same for all rows, ``[tokens, token_dims]``, or those of each, ``[rows, tokens, token_dims]``.
            condition: embedding of the perturbation of each row.
            touch: how much the perturbation acts on each token; None where nothing is known of it.
            neighbours: the mask; without it every token attends to every other.
            key: turns dropout on.
        """
        keys = [None] * self.config.depth if key is None else list(jax.random.split(key, self.config.depth))
        entered = self.enter(tokens)
        scale, offset = jnp.split(self.film(condition)[:, None, :], 2, axis=-1)
        x = (entered[None] if entered.ndim == 2 else entered) * (1.0 + scale) + offset
        if touch is not None:
            x = x + touch[..., None] * self.mark(condition)[:, None, :]
        for layer, (attention, mlp) in enumerate(zip(self.attention, self.mlps, strict=True)):
            x = x + attention(self.norms[2 * layer](x), neighbours)
            moved = mlp(self.norms[2 * layer + 1](x))
            x = x + self.dropout(moved, deterministic=key is None, rngs=keys[layer])
        x = self.norms[-1](x)
        return self.head(x) if self.n_out else x
