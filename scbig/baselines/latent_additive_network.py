"""The network of the latent-additive baseline."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

__all__ = ["AdditiveNet", "GeneSets"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GeneSets:
    """The perturbed genes of each condition, filled up to the largest set.

    Attributes:
        features: of each gene.
        present: which places hold a gene.
        context: number of the context; a number past the last stands for one never trained on.
    """

    features: Float[Array | np.ndarray, "rows slots dims"]
    present: Bool[Array | np.ndarray, "rows slots"]
    context: Int[Array | np.ndarray, " rows"]


class AdditiveNet(nnx.Module):
    """Genes are encoded one by one, summed in a latent together with the context, and decoded.

    Args:
        dims: of a gene's features.
        n_contexts: contexts trained on.
        n_out: components of the effect.
        width: of the hidden layers.
        latent: dimensions in which genes add up.
        dropout: on features and hidden layers.
        rngs: stream ``params`` for the initial weights.
    """

    def __init__(
        self, dims: int, n_contexts: int, n_out: int, width: int, latent: int, dropout: float | int, *, rngs: nnx.Rngs
    ):
        self.n_contexts = n_contexts
        self.enter = nnx.Linear(dims, width, rngs=rngs)
        self.encode = nnx.Linear(width, latent, use_bias=False, rngs=rngs)
        self.context = nnx.Embed(n_contexts, latent, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.expand = nnx.Linear(latent, width, rngs=rngs)
        self.skip = nnx.Linear(latent, n_out, use_bias=False, kernel_init=nnx.initializers.zeros, rngs=rngs)
        # From zero: an untrained network predicts the mean of the training effects.
        self.leave = nnx.Linear(width, n_out, kernel_init=nnx.initializers.zeros, rngs=rngs)
        self.dropout = nnx.Dropout(dropout)

    def __call__(self, sets: GeneSets, key: jax.Array | None = None) -> Float[Array, "rows components"]:
        """Components of the effect, as deviations from the mean; ``key`` turns dropout on."""
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        each = self.encode(self._drop(nnx.gelu(self.enter(sets.features)), keys[0]))
        total = jnp.sum(jnp.where(sets.present[..., None], each, 0.0), axis=1)
        told = (sets.context < self.n_contexts)[:, None]
        total = total + jnp.where(told, self.context(jnp.minimum(sets.context, self.n_contexts - 1)), 0.0)
        hidden = self._drop(nnx.gelu(self.expand(total)), keys[1])
        return self.leave(hidden) + self.skip(total)

    def _drop(self, x, key):
        return self.dropout(x, deterministic=key is None, rngs=key)
