"""Multi-head attention that can return its maps, and the induced (Perceiver-style) block built from it."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

__all__ = ["Attention", "InducedBlock", "Mlp", "TransformerBlock"]


class Mlp(nnx.Module):
    """Dense, GELU, Dense with a residual width of ``ratio`` times the input."""

    def __init__(self, width: int, ratio: int, *, rngs: nnx.Rngs):
        self.expand = nnx.Linear(width, ratio * width, rngs=rngs)
        self.contract = nnx.Linear(ratio * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        """Maps each vector on its own."""
        return self.contract(nnx.gelu(self.expand(x)))


class Attention(nnx.Module):
    """Scaled dot-product attention with ``heads`` heads of ``width / heads`` dimensions."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        if width % heads:
            raise ValueError(f"width {width} does not divide over {heads} heads")
        self.heads = heads
        self.query = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.key = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.value = nnx.Linear(width, width, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(width, width, rngs=rngs)

    def __call__(
        self,
        q: Float[Array, "batch queries width"],
        kv: Float[Array, "batch keys width"],
        mask: Bool[Array, "#batch keys"] | None = None,
    ) -> tuple[Float[Array, "batch queries width"], Float[Array, "batch heads queries keys"]]:
        """Attends from queries to keys.

        Args:
            q: queries.
            kv: keys and values.
            mask: which keys exist; the others get a weight of exactly zero.

        Returns:
            The attended vectors and the attention weights, which sum to one over the keys that exist.
        """

        def split(x):
            return x.reshape(*x.shape[:-1], self.heads, -1)

        query, key, value = split(self.query(q)), split(self.key(kv)), split(self.value(kv))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(query.shape[-1])
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, -jnp.inf)
        weights = jax.nn.softmax(logits, axis=-1)
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return self.out(out.reshape(*q.shape[:-1], -1)), weights


class InducedBlock(nnx.Module):
    """Compress, process, broadcast: tokens talk through a few learnable inducing points (Eq. 3 of the paper).

    ``I' = I + Attn(I, H)``, ``I'' = I' + SelfAttn(I')``, ``H' = H + Attn(H, I'')``, pre-norm, an MLP after the last two.
    """

    def __init__(self, width: int, heads: int, inducing: int, ratio: int, dropout: float, *, rngs: nnx.Rngs):
        self.points = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, inducing, width)))
        self.compress = Attention(width, heads, rngs=rngs)
        self.process = Attention(width, heads, rngs=rngs)
        self.broadcast = Attention(width, heads, rngs=rngs)
        self.points_mlp = Mlp(width, ratio, rngs=rngs)
        self.tokens_mlp = Mlp(width, ratio, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(7)])
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        tokens: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch tokens"] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], dict[str, Array]]:
        """One block; without a ``key`` dropout is off.

        Returns:
            The tokens, and the attention maps ``compress`` ``[batch, heads, inducing, tokens]``, ``process``
            and ``broadcast`` ``[batch, heads, tokens, inducing]``.
        """
        keys = [None] * 2 if key is None else list(jax.random.split(key))
        points = jnp.broadcast_to(self.points[...], (tokens.shape[0], *self.points[...].shape[1:]))
        norm = self.norms
        moved, compress = self.compress(norm[0](points), norm[1](tokens), mask)
        points = points + moved
        normed = norm[2](points)
        moved, process = self.process(normed, normed)
        points = points + moved
        points = points + self._drop(self.points_mlp(norm[3](points)), keys[0])
        moved, broadcast = self.broadcast(norm[4](tokens), norm[5](points))
        tokens = tokens + moved
        tokens = tokens + self._drop(self.tokens_mlp(norm[6](tokens)), keys[1])
        return tokens, {"compress": compress, "process": process, "broadcast": broadcast}

    def _drop(self, x, key):
        return self.dropout(x, deterministic=key is None, rngs=key)


class TransformerBlock(nnx.Module):
    """Plain pre-norm self-attention over the tokens, for the ablation of the inducing points."""

    def __init__(self, width: int, heads: int, ratio: int, dropout: float, *, rngs: nnx.Rngs):
        self.attention = Attention(width, heads, rngs=rngs)
        self.mlp = Mlp(width, ratio, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(width, rngs=rngs) for _ in range(2)])
        self.dropout = nnx.Dropout(dropout)

    def __call__(
        self,
        tokens: Float[Array, "batch tokens width"],
        mask: Bool[Array, "#batch tokens"] | None = None,
        key: jax.Array | None = None,
    ) -> tuple[Float[Array, "batch tokens width"], dict[str, Array]]:
        """One block; returns the tokens and the map ``self`` ``[batch, heads, tokens, tokens]``."""
        normed = self.norms[0](tokens)
        moved, weights = self.attention(normed, normed, mask)
        tokens = tokens + moved
        moved = self.mlp(self.norms[1](tokens))
        return tokens + self.dropout(moved, deterministic=key is None, rngs=key), {"self": weights}
