"""The transformer of the fusion baseline."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from scbig.nn.attention import TransformerBlock

__all__ = ["FusionConfig", "FusionNet", "Inputs"]

_CONTEXT_DROPOUT = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inputs:
    """What is known of perturbed genes, one row each.

    Attributes:
        vectors: by source, rows × dims; zeros where the source does not know the gene.
        known: which sources know the gene.
        context: number of the context; a number past the last stands for one never trained on.
    """

    vectors: tuple[Float[Array | np.ndarray, "rows _"], ...]
    known: Bool[Array | np.ndarray, "rows sources"]
    context: Int[Array | np.ndarray, " rows"]


@dataclass(frozen=True)
class FusionConfig:
    """The transformer's architecture."""

    width: int = 96
    depth: int = 2
    heads: int = 4
    dropout: float | int = 0.2
    source_dropout: float | int = 0.2


class FusionNet(nnx.Module):
    """One token per source, one for the context and one (CLS) that gathers; the effect is read from the last.

    A source that does not know the gene is masked in every attention, and its vector never reaches the others. While
    training, sources are dropped at random, but never all of a gene.

    Args:
        config: the architecture.
        dims: width of each source's vectors.
        n_contexts: contexts trained on.
        n_out: components of the effect.
        rngs: stream ``params`` for the initial weights.
    """

    def __init__(self, config: FusionConfig, dims: tuple[int, ...], n_contexts: int, n_out: int, *, rngs: nnx.Rngs):
        width, small = config.width, nnx.initializers.normal(0.02)
        self.config, self.n_contexts = config, n_contexts
        self.project = nnx.List([nnx.Linear(d, width, rngs=rngs) for d in dims])
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in dims])
        self.kind = nnx.Param(small(rngs.params(), (len(dims), width)))
        self.gather = nnx.Param(small(rngs.params(), (1, width)))
        self.context = nnx.Embed(n_contexts, width, embedding_init=small, rngs=rngs)
        self.blocks = nnx.List(
            [TransformerBlock(width, config.heads, 2, config.dropout, rngs=rngs) for _ in range(config.depth)]
        )
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        # From zero: an untrained network predicts the mean of the training effects.
        self.head = nnx.Linear(width, n_out, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, inputs: Inputs, key: jax.Array | None = None) -> Float[Array, "rows components"]:
        """Components of the effect, as deviations from the mean; ``key`` turns all dropout on."""
        known, told = jnp.asarray(inputs.known), jnp.asarray(inputs.context) < self.n_contexts
        rows, n_sources = known.shape
        keys = [None] * (2 + n_sources + len(self.blocks))
        if key is not None:
            keys = list(jax.random.split(key, len(keys)))
            kept = known & jax.random.bernoulli(keys[0], 1 - self.config.source_dropout, known.shape)
            known = jnp.where(jnp.any(kept, axis=1, keepdims=True), kept, known)
            told = told & jax.random.bernoulli(keys[1], 1 - _CONTEXT_DROPOUT, told.shape)
        tokens = [
            jnp.broadcast_to(self.gather[...], (rows, self.config.width)),
            self.context(jnp.minimum(inputs.context, self.n_contexts - 1)),
        ]
        for s, vectors in enumerate(inputs.vectors):
            vectors = self.dropout(vectors, deterministic=key is None, rngs=keys[2 + s])
            tokens.append(self.norms[s](self.project[s](vectors)) + self.kind[...][None, s])
        x = jnp.stack(tokens, axis=1)
        used = jnp.concatenate([jnp.ones((rows, 1), bool), told[:, None], known], axis=1)
        for block, block_key in zip(self.blocks, keys[2 + n_sources :], strict=True):
            x, _ = block(x, used, block_key)
        return self.head(self.norm(x[:, 0]))
